//! Memory whose refusal is an answer: who can do without a large buffer asks for it here. All other requests that the system
//! refuses end the process.

use std::cell::Cell;
use std::collections::TryReserveError;

thread_local! {
    static ASKING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread takes no for an answer now: what an allocator must know that would end the process instead.
pub fn may_be_refused() -> bool {
    ASKING.get()
}

/// Room for so many more values.
///
/// # Errors
/// The system refuses.
pub fn try_reserve<T>(values: &mut Vec<T>, more: usize) -> Result<(), TryReserveError> {
    ASKING.set(true);
    let reserved = values.try_reserve_exact(more);
    ASKING.set(false);
    reserved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_an_answer() {
        let mut values = Vec::<u64>::new();
        assert!(try_reserve(&mut values, 1 << 50).is_err() && !may_be_refused());
        try_reserve(&mut values, 100).unwrap();
        assert!(values.capacity() >= 100 && !may_be_refused());
    }
}
