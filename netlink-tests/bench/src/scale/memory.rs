//! Memory of the process and the kernel.

use std::fs;

use serde::{Deserialize, Serialize};

use super::Failure;

/// The resident memory of this process.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Resident {
    /// At its largest so far, in MiB (`VmHWM`).
    pub peak_mib: f64,
    /// Now, in MiB (`VmRSS`).
    pub now_mib: f64,
    /// Of that, heap and stacks; the rest is the program itself (`RssAnon`).
    pub anonymous_mib: f64,
}

/// Reads `/proc/self/status`.
///
/// # Errors
/// If `/proc` is not what proc(5) says.
pub fn resident() -> Result<Resident, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let mib = |name: &str| field(&status, name).map(|kib| kib as f64 / 1024.0);
    Ok(Resident { peak_mib: mib("VmHWM:")?, now_mib: mib("VmRSS:")?, anonymous_mib: mib("RssAnon:")? })
}

/// Lets the peak begin anew (proc(5): `clear_refs`).
///
/// # Errors
/// If the kernel does not let us.
pub fn reset_peak() -> Result<(), Failure> {
    Ok(fs::write("/proc/self/clear_refs", "5")?)
}

/// Memory that only the kernel can hold, in bytes: slab objects that can't be
/// reclaimed, vmalloc areas (large hash tables) and per-CPU counters.
///
/// It is the whole machine's: a difference means something only where nothing
/// else happens, and where it is large.
///
/// # Errors
/// If `/proc/meminfo` is not what proc(5) says.
pub fn kernel_bytes() -> Result<u64, Failure> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let kib = field(&meminfo, "SUnreclaim:")? + field(&meminfo, "VmallocUsed:")? + field(&meminfo, "Percpu:")?;
    Ok(kib * 1024)
}

/// The number behind a name, in the file's KiB.
fn field(text: &str, name: &str) -> Result<u64, Failure> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(|| format!("no {name} in /proc"))?;
    let number = line.split_whitespace().next().ok_or_else(|| format!("nothing behind {name} in /proc"))?;
    Ok(number.parse()?)
}
