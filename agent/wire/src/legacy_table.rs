//! A table of legacy iptables in the format of the kernel: all its rules in one
//! piece of memory, with jumps as offsets into it
//! (`include/uapi/linux/netfilter/x_tables.h`, `netfilter_ipv4/ip_tables.h`,
//! `netfilter_ipv6/ip6_tables.h`).
//!
//! ```text
//! entry    addresses and interfaces   84 bytes (IPv6: 136)
//!          nfcache u32, target offset u16, next offset u16, comefrom u32
//!          packet and byte counters   2 x u64, at a multiple of 8
//!          matches, then one target
//! target   size u16, name [29], revision u8
//!          of the name "":      verdict i32, an offset if it is not negative
//!          of the name "ERROR": a text [30], the name of the chain that begins behind it
//! ```
//!
//! Matches and targets are copied without being interpreted.

use std::collections::HashSet;
use std::ops::Range;

use vmap_proxy_compiler::ruleset::Family;

/// The positions of `target offset` and `next offset` in an entry, and the size
/// of an entry without matches and target.
struct Layout {
    target_offset: usize,
    header: usize,
}

const TARGET_NAME: Range<usize> = 2..31;
/// `sizeof(struct xt_entry_target)`: the data of a target begins there.
const TARGET_DATA: usize = 32;
const ERROR_NAME: Range<usize> = TARGET_DATA..TARGET_DATA + 30;
const ERROR_TARGET: &str = "ERROR";

fn layout(family: Family) -> Layout {
    match family {
        Family::Ipv4 => Layout { target_offset: 88, header: 112 },
        Family::Ipv6 => Layout { target_offset: 140, header: 168 },
    }
}

/// A table: its rules, and the beginnings and ends of its built-in chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyTable {
    /// The rules.
    pub entries: Vec<u8>,
    /// The number of rules.
    pub count: usize,
    /// For each hook the offset of its chain's first entry.
    pub hook_entry: [u32; 5],
    /// For each hook the offset of its chain's last entry, the policy.
    pub underflow: [u32; 5],
    /// Bit mask of the hooks that the table has.
    pub valid_hooks: u32,
}

/// A table without some of its chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reduced {
    /// The remaining table.
    pub table: LegacyTable,
    /// The earlier positions of the remaining entries, in order.
    pub kept: Vec<usize>,
    /// The number of removed chains.
    pub chains: usize,
}

/// The relevant parts of one entry.
struct Entry {
    range: Range<usize>,
    kind: Kind,
}

enum Kind {
    /// The beginning of the chain of this name, or of the end of the table.
    Head(String),
    /// A jump or goto to the entry at an offset; where the verdict is.
    Jump {
        to: usize,
        verdict_at: usize,
    },
    Other,
}

impl LegacyTable {
    /// Returns the table without the chains that `remove` names and without the
    /// rules that lead there, or `None` if there is nothing to remove or the
    /// bytes are malformed.
    pub fn without(&self, family: Family, remove: impl Fn(&str) -> bool) -> Option<Reduced> {
        let entries = self.parse(family)?;
        let (gone, chains) = removed_chains(&entries, remove);
        if chains == 0 {
            return None;
        }
        let gone_offsets: HashSet<usize> = gone.iter().map(|index| entries[*index].range.start).collect();
        let leads_there = |entry: &Entry| matches!(entry.kind, Kind::Jump { to, .. } if gone_offsets.contains(&to));
        let kept: Vec<usize> = (0..entries.len())
            .filter(|index| !gone_offsets.contains(&entries[*index].range.start) && !leads_there(&entries[*index]))
            .collect();
        self.rebuild(&entries, kept, chains)
    }

    fn rebuild(&self, entries: &[Entry], kept: Vec<usize>, chains: usize) -> Option<Reduced> {
        // The offset of a removed entry stands for the next remaining one.
        let mut moved = Vec::with_capacity(entries.len());
        let (mut position, mut next_kept) = (0, kept.iter().peekable());
        for (index, entry) in entries.iter().enumerate() {
            moved.push((entry.range.start, position));
            if next_kept.next_if_eq(&&index).is_some() {
                position += entry.range.len();
            }
        }
        let new_offset = |old: usize| {
            let found = moved.binary_search_by_key(&old, |(old, _)| *old).ok()?;
            Some(moved[found].1)
        };
        let mut bytes = Vec::with_capacity(position);
        for index in &kept {
            let entry = &entries[*index];
            let begin = bytes.len();
            bytes.extend_from_slice(&self.entries[entry.range.clone()]);
            if let Kind::Jump { to, verdict_at } = entry.kind {
                let verdict = i32::try_from(new_offset(to)?).ok()?;
                let at = begin + (verdict_at - entry.range.start);
                bytes[at..at + 4].copy_from_slice(&verdict.to_ne_bytes());
            }
        }
        let mut table = Self { entries: bytes, count: kept.len(), ..self.clone() };
        for hook in (0..5).filter(|hook| self.valid_hooks & 1 << hook != 0) {
            table.hook_entry[hook] = u32::try_from(new_offset(self.hook_entry[hook] as usize)?).ok()?;
            table.underflow[hook] = u32::try_from(new_offset(self.underflow[hook] as usize)?).ok()?;
        }
        Some(Reduced { table, kept, chains })
    }

    fn parse(&self, family: Family) -> Option<Vec<Entry>> {
        let layout = layout(family);
        let mut entries = Vec::with_capacity(self.count);
        let mut start = 0;
        while start < self.entries.len() {
            let entry = self.entries.get(start..)?;
            let target = usize::from(short(entry, layout.target_offset)?);
            let next = usize::from(short(entry, layout.target_offset + 2)?);
            if target < layout.header || next < target + TARGET_DATA {
                return None;
            }
            let kind = kind(entry.get(..next)?, target, start)?;
            entries.push(Entry { range: start..start + next, kind });
            start += next;
        }
        (entries.len() == self.count).then_some(entries)
    }
}

/// Classifies an entry by the target at this position.
fn kind(entry: &[u8], target: usize, start: usize) -> Option<Kind> {
    let target_bytes = entry.get(target..)?;
    Some(match text(target_bytes.get(TARGET_NAME)?) {
        "" => {
            let verdict = i32::from_ne_bytes(target_bytes.get(TARGET_DATA..TARGET_DATA + 4)?.try_into().ok()?);
            match usize::try_from(verdict) {
                Ok(to) => Kind::Jump { to, verdict_at: start + target + TARGET_DATA },
                Err(_) => Kind::Other,
            }
        }
        ERROR_TARGET => Kind::Head(text(target_bytes.get(ERROR_NAME)?).to_owned()),
        _ => Kind::Other,
    })
}

/// Returns the entries of the chains to remove, including heads, and the number
/// of chains.
fn removed_chains(entries: &[Entry], remove: impl Fn(&str) -> bool) -> (Vec<usize>, usize) {
    let (mut gone, mut chains, mut removing) = (Vec::new(), 0, false);
    for (index, entry) in entries.iter().enumerate() {
        if let Kind::Head(name) = &entry.kind {
            removing = remove(name);
            chains += usize::from(removing);
        }
        if removing {
            gone.push(index);
        }
    }
    (gone, chains)
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Returns a string up to its terminating zero; one that is not UTF-8 matches
/// no name.
fn text(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDARD: usize = 112 + 40;
    const HEAD: usize = 112 + 64;

    fn entry(size: usize, name: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; size];
        bytes[88..90].copy_from_slice(&112u16.to_ne_bytes());
        bytes[90..92].copy_from_slice(&(size as u16).to_ne_bytes());
        bytes[114..114 + name.len()].copy_from_slice(name.as_bytes());
        bytes[144..144 + data.len()].copy_from_slice(data);
        bytes
    }

    fn verdict(verdict: usize) -> Vec<u8> {
        entry(STANDARD, "", &(verdict as i32).to_ne_bytes())
    }

    fn accept() -> Vec<u8> {
        entry(STANDARD, "", &(-2i32).to_ne_bytes())
    }

    fn head(name: &str) -> Vec<u8> {
        entry(HEAD, "ERROR", name.as_bytes())
    }

    /// INPUT: a jump to KUBE-SERVICES, a jump to MINE, the policy. Then the
    /// chains KUBE-SERVICES (one rule and its return) and MINE.
    fn sample() -> LegacyTable {
        let kube = 3 * STANDARD + HEAD;
        let mine = kube + 2 * STANDARD + HEAD;
        let pieces = [
            verdict(kube),
            verdict(mine),
            accept(),
            head("KUBE-SERVICES"),
            verdict(mine),
            accept(),
            head("MINE"),
            accept(),
            head("ERROR"),
        ];
        LegacyTable {
            count: pieces.len(),
            entries: pieces.concat(),
            hook_entry: [0; 5],
            underflow: [0, 2 * STANDARD as u32, 0, 0, 0],
            valid_hooks: 2,
        }
    }

    #[test]
    fn chains_go_with_what_leads_there_and_jumps_follow() {
        let reduced = sample().without(Family::Ipv4, |name| name == "KUBE-SERVICES").unwrap();
        assert_eq!((reduced.chains, reduced.kept), (1, vec![1, 2, 6, 7, 8]));
        let mine = 2 * STANDARD + HEAD;
        let expected = [verdict(mine), accept(), head("MINE"), accept(), head("ERROR")].concat();
        assert_eq!(reduced.table.entries, expected);
        assert_eq!(reduced.table.hook_entry[1], 0);
        assert_eq!(reduced.table.underflow[1], STANDARD as u32);
        assert_eq!(reduced.table.count, 5);
    }

    #[test]
    fn nothing_to_remove_and_nonsense_leave_the_table_alone() {
        assert_eq!(sample().without(Family::Ipv4, |name| name == "KUBE-SVC"), None);
        let mut torn = sample();
        torn.entries.pop();
        assert_eq!(torn.without(Family::Ipv4, |_| true), None);
        let mut counted = sample();
        counted.count += 1;
        assert_eq!(counted.without(Family::Ipv4, |_| true), None);
        let mut looping = sample();
        looping.entries[90..92].copy_from_slice(&0u16.to_ne_bytes());
        assert_eq!(looping.without(Family::Ipv4, |_| true), None);
    }
}
