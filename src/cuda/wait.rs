//! Waiting for the device with an ear for whoever wants to stop.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Asked again and again while something is waited for: an error ends the wait.
pub type KeepOn<'k> = dyn FnMut() -> Result<()> + 'k;

/// Waits that are shorter end at once when what they wait for has come.
const SPUN: Duration = Duration::from_millis(2);
/// Longer ones end so much later at most.
const PAUSE: Duration = Duration::from_micros(500);

/// Waits until `done`. A wait is a sixteenth longer than it need be, at most.
///
/// # Errors
/// What `done` or `keep_on` return.
pub(super) fn until(mut done: impl FnMut() -> Result<bool>, keep_on: &mut KeepOn) -> Result<()> {
    let begun = Instant::now();
    while !done()? {
        keep_on()?;
        match begun.elapsed() {
            waited if waited < SPUN => std::thread::yield_now(),
            waited => std::thread::sleep((waited / 16).min(PAUSE)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_wait_ends_when_it_may_or_must() {
        let mut asked = 0;
        until(|| Ok(true), &mut || bail!("nobody is asked")).unwrap();
        until(
            || {
                asked += 1;
                Ok(asked == 5)
            },
            &mut || Ok(()),
        )
        .unwrap();
        assert_eq!(asked, 5);
        let begun = Instant::now();
        let stop = &mut || if begun.elapsed() > 5 * SPUN { bail!("enough") } else { Ok(()) };
        assert_eq!(until(|| Ok(false), stop).unwrap_err().to_string(), "enough");
        assert!(begun.elapsed() > 5 * SPUN);
        assert_eq!(until(|| bail!("broken"), &mut || Ok(())).unwrap_err().to_string(), "broken");
    }
}
