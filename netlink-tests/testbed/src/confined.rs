//! A program under a seccomp profile of the kind that container runtimes take, where a call that the profile does not have
//! ends the program instead of failing: a test can't overlook it.

use std::collections::HashMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use seccompiler::{BpfProgram, TargetArch, apply_filter, compile_from_json};
use serde::Deserialize;
use serde_json::{Value, json};

/// The parts of a profile that ours uses.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    syscalls: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<Argument>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

impl Argument {
    fn condition(&self) -> Value {
        let (op, value) = match self.op.as_str() {
            "SCMP_CMP_EQ" => (json!("eq"), self.value),
            "SCMP_CMP_MASKED_EQ" => (json!({"masked_eq": self.value}), self.value_two),
            other => panic!("the profile compares by {other}, which no test knows"),
        };
        json!({"index": self.index, "type": "dword", "op": op, "val": value})
    }
}

/// Has the kernel end the command at its first call that the profile does not allow.
///
/// # Panics
///
/// If the profile can't be read, or names a call that no architecture has.
#[track_caller]
pub fn confine(command: &mut Command, profile: &Path) {
    let filters = filters(profile);
    let install = move || {
        for filter in &filters {
            apply_filter(filter).map_err(|error| match error {
                seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
                _ => io::Error::from_raw_os_error(libc::EINVAL),
            })?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, and no memory is allocated.
    unsafe { command.pre_exec(install) };
}

/// The filters of a profile, in the order of their installation: the last one lets no further one be installed.
#[track_caller]
fn filters(path: &Path) -> Vec<BpfProgram> {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let profile: Profile = serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(profile.default_action, "SCMP_ACT_ERRNO");
    let (mut filters, mut named) = (Vec::new(), Vec::new());
    for rule in &profile.syscalls {
        let conditions: Vec<Value> = rule.args.iter().map(Argument::condition).collect();
        let calls: Vec<Value> = rule
            .names
            .iter()
            .filter(|name| is_of_this_machine(name))
            .map(|name| match conditions.is_empty() {
                true => json!({"syscall": name}),
                false => json!({"syscall": name, "args": conditions}),
            })
            .collect();
        if rule.action != "SCMP_ACT_ALLOW" {
            assert_eq!(rule.action, "SCMP_ACT_ERRNO");
            filters.push(compiled(&json!("allow"), &json!({"errno": rule.errno_ret.unwrap_or(1)}), &calls, ARCH));
        }
        named.extend(calls);
    }
    filters.push(compiled(&json!("kill_process"), &json!("allow"), &named, ARCH));
    filters
}

fn is_of_this_machine(name: &str) -> bool {
    let calls = [json!({"syscall": name})];
    let is_of = |arch| try_compile(&json!("kill_process"), &json!("allow"), &calls, arch).is_ok();
    assert!(
        is_of(TargetArch::x86_64) || is_of(TargetArch::aarch64),
        "the profile names {name}, which is no system call"
    );
    is_of(ARCH)
}

const ARCH: TargetArch = if cfg!(target_arch = "aarch64") { TargetArch::aarch64 } else { TargetArch::x86_64 };

fn compiled(other: &Value, named: &Value, calls: &[Value], arch: TargetArch) -> BpfProgram {
    try_compile(other, named, calls, arch).unwrap_or_else(|error| panic!("{error}"))
}

fn try_compile(
    other: &Value,
    named: &Value,
    calls: &[Value],
    arch: TargetArch,
) -> Result<BpfProgram, seccompiler::Error> {
    let text = json!({"it": {"mismatch_action": other, "match_action": named, "filter": calls}}).to_string();
    let mut programs: HashMap<String, BpfProgram> = compile_from_json(text.as_bytes(), arch)?;
    Ok(programs.remove("it").unwrap_or_default())
}
