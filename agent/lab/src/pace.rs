//! How slow this machine is, so that a probe is not called silent because its kernel is emulated.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// Time in which two threads pass a byte back and forth on an ordinary machine with some other work: three times the
/// figure of an idle one.
const ORDINARY_ROUND: Duration = Duration::from_micros(30);
/// Number of times that the byte goes back and forth.
const ROUNDS: u32 = 300;
/// More than any emulation needs; a machine that measures more was stopped in between.
const SLOWEST: f64 = 60.0;

/// A time limit that was chosen for an ordinary machine, as long as this one needs.
///
/// The factor is measured once a process, by what a probe is made of: system calls, and one thread that wakes another. It
/// is never below 1. An emulated kernel gives 5 to 40.
pub fn patient(limit: Duration) -> Duration {
    static FACTOR: OnceLock<f64> = OnceLock::new();
    limit.mul_f64(*FACTOR.get_or_init(|| factor(measure())))
}

/// If the measurement fails, the machine counts as ordinary.
fn factor(measured: io::Result<Duration>) -> f64 {
    let ordinary = (ORDINARY_ROUND * ROUNDS).as_secs_f64();
    measured.map_or(1.0, |measured| (measured.as_secs_f64() / ordinary).clamp(1.0, SLOWEST))
}

fn measure() -> io::Result<Duration> {
    let (mut here, mut there) = UnixStream::pair()?;
    let echo = thread::Builder::new().spawn(move || {
        let mut byte = [0];
        // Ends with an error when the other side is closed.
        while there.read_exact(&mut byte).and_then(|()| there.write_all(&byte)).is_ok() {}
    })?;
    let begun = Instant::now();
    let mut byte = [0];
    let passed = (0..ROUNDS).try_for_each(|_| here.write_all(&byte).and_then(|()| here.read_exact(&mut byte)));
    let took = begun.elapsed();
    drop(here);
    // The echo thread returns nothing, and cannot panic.
    let _ = echo.join();
    passed.map(|()| took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_machine_keeps_the_limit_and_a_slow_one_gets_more() {
        let round = |micros| Ok(Duration::from_micros(micros) * ROUNDS);
        assert_eq!(factor(round(5)), 1.0);
        assert_eq!(factor(round(300)), 10.0);
        assert_eq!(factor(round(1_000_000)), SLOWEST);
        assert_eq!(factor(Err(io::ErrorKind::OutOfMemory.into())), 1.0);
    }

    #[test]
    fn something_is_measured() {
        assert!(measure().is_ok_and(|took| took > Duration::ZERO));
        assert!(patient(Duration::from_secs(1)) >= Duration::from_secs(1));
    }
}
