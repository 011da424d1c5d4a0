//! The view of `nft -j`.

use std::collections::BTreeSet;

use serde_json::Value;
use vmap_proxy_compiler::ruleset::chains::Hook;

use super::view::{ChainView, View};

/// Reads what `nft -j list table` prints.
///
/// # Errors
///
/// Anything in it that is not understood.
pub(crate) fn view(text: &str) -> Result<View, String> {
    let root: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let objects = root["nftables"].as_array().ok_or("no objects")?;
    let mut view = View::default();
    for object in objects {
        if let Some(chain) = object.get("chain") {
            let base = match chain.get("hook") {
                Some(hook) => Some((string(&chain["type"])?, hook_number(hook)?, priority(&chain["prio"])?)),
                None => None,
            };
            view.chains.insert(string(&chain["name"])?, ChainView { base, rules: 0 });
        } else if let Some(rule) = object.get("rule") {
            let name = string(&rule["chain"])?;
            view.chains.get_mut(&name).ok_or("a rule before its chain")?.rules += 1;
        } else if let Some(set) = object.get("set").or_else(|| object.get("map")) {
            let mut texts = BTreeSet::new();
            for item in set.get("elem").and_then(Value::as_array).into_iter().flatten() {
                texts.insert(element(item)?);
            }
            view.sets.insert(string(&set["name"])?, texts);
        }
    }
    Ok(view)
}

/// A key, or in a map a pair of key and value; a key with a comment is wrapped.
fn element(item: &Value) -> Result<String, String> {
    if let Some([key, value]) = item.as_array().map(Vec::as_slice) {
        return Ok(format!("{} : {}", expression(key)?, expression(value)?));
    }
    expression(item)
}

fn expression(value: &Value) -> Result<String, String> {
    if let Some(inner) = value.get("elem") {
        return expression(&inner["val"]);
    }
    if let Some(parts) = value.get("concat").and_then(Value::as_array) {
        let parts: Result<Vec<String>, String> = parts.iter().map(expression).collect();
        return Ok(parts?.join(" . "));
    }
    if let Some(prefix) = value.get("prefix") {
        return Ok(format!("{}/{}", expression(&prefix["addr"])?, expression(&prefix["len"])?));
    }
    if let Some(goto) = value.get("goto") {
        return Ok(format!("goto {}", string(&goto["target"])?));
    }
    if value.get("drop").is_some() {
        return Ok("drop".to_owned());
    }
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(format!("not understood: {other}")),
    }
}

fn string(value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| format!("no string: {value}"))
}

fn priority(value: &Value) -> Result<i32, String> {
    value.as_i64().and_then(|number| i32::try_from(number).ok()).ok_or_else(|| format!("no priority: {value}"))
}

fn hook_number(value: &Value) -> Result<u32, String> {
    let hooks = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];
    let hook = hooks.into_iter().find(|hook| Some(hook.keyword()) == value.as_str());
    hook.map(Hook::number).ok_or_else(|| format!("no hook: {value}"))
}
