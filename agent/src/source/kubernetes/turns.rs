//! Turns for everything else in the event loop while a long list is read.

/// Bytes of a response that are decoded in one go: a millisecond or two. A
/// response that arrives as fast as it is read would otherwise keep health,
/// metrics and signals waiting until it ends.
pub(super) const TURN: usize = 32 * 1024;

/// The bytes decoded since the last turn of others.
#[derive(Debug, Default)]
pub(super) struct Turns {
    bytes: usize,
}

impl Turns {
    /// So many bytes were decoded; lets others have a turn if that is due.
    pub(super) async fn decoded(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= TURN {
            self.bytes = 0;
            tokio::task::yield_now().await;
        }
    }
}
