//! Looks programmed elements up in the kernel, several pages at a time.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, PoisonError};
use std::thread;

use thiserror::Error;
use vmap_proxy_compiler::ruleset::maps::Map;

use super::asked::{AskError, Asked};
use crate::netlink::{Kernel, NetlinkError};
use crate::query::protocol::ElementGroup;

/// Threads that look elements up, at most: a look-up takes the kernel some 2 us,
/// and the node has other work.
const THREADS: usize = 4;

/// The elements could not be looked up.
#[derive(Debug, Error)]
pub(super) enum ReadBackError {
    /// Nobody answers.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The kernel can't be read.
    #[error("the kernel can't be read: {0}")]
    Kernel(#[from] NetlinkError),
}

/// Reads the programmed elements of some maps, or of all, from the agent, and calls
/// `each` with them and a connection to the kernel, on several threads.
///
/// # Errors
/// If no agent answers, or the first error of `each`.
pub(super) fn read_back<E>(
    asked: &mut Asked,
    maps: &[Map],
    each: impl Fn(&mut Kernel, ElementGroup) -> Result<(), NetlinkError> + Sync,
) -> Result<(), E>
where
    E: From<AskError> + From<NetlinkError>,
{
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(THREADS);
    let (sender, receiver) = mpsc::sync_channel(2 * threads);
    let receiver = Mutex::new(receiver);
    let (asked, looked_up) = thread::scope(|scope| {
        // The agent's pages come faster than the kernel's answers.
        let work = || look_up(&receiver, &each);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        // The workers take all groups, whatever happens.
        let asked = asked.each_group(maps, |page| page.into_iter().for_each(|group| _ = sender.send(group)));
        drop(sender);
        let results = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        (asked, results.collect::<Result<Vec<()>, NetlinkError>>())
    });
    looked_up?;
    Ok(asked?)
}

/// Takes groups until there are no more, behind an error, too: nobody else may be
/// left to take them.
fn look_up(
    groups: &Mutex<Receiver<ElementGroup>>,
    each: &impl Fn(&mut Kernel, ElementGroup) -> Result<(), NetlinkError>,
) -> Result<(), NetlinkError> {
    let mut kernel = Kernel::open();
    let mut result = Ok(());
    loop {
        let next = groups.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match (next, &mut kernel) {
            (Ok(group), Ok(kernel)) if result.is_ok() => result = each(kernel, group),
            (Ok(_), _) => {}
            (Err(_), _) => return kernel.and(result),
        }
    }
}
