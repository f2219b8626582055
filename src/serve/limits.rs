//! What callers may ask at most. Each number stands in SECURITY.md with the test that holds it.

#[cfg(all(feature = "serve", unix))]
use std::time::Duration;

/// Most bytes of a request's body: a picture of 50 MB, as base64 in JSON.
pub const BODY_BYTES_MAX: usize = 64 << 20;
/// Most pixels of a picture that comes in, and of all the results of a request together.
pub const PIXELS_MAX: u64 = 100_000_000;
/// Most pixels of the pictures of all requests that wait or run, in megapixels.
pub const HELD_MEGAPIXELS_MAX: usize = 400;
/// Most parts of a form, or members of a JSON object.
pub const PARTS_MAX: usize = 64;
/// Most bytes of a field's name.
pub const NAME_BYTES_MAX: usize = 64;
/// Most bytes of a part that is text.
pub const TEXT_BYTES_MAX: usize = 131_072;
/// Most characters of a prompt.
pub const PROMPT_CHARACTERS_MAX: usize = 32_000;
/// Most pictures of a request.
pub const COUNT_MAX: usize = 10;
/// Most partial pictures of a request.
pub const PARTIALS_MAX: usize = 3;
/// Largest side of a result whose size is asked for, in pixels.
pub const RESULT_SIDE_MAX: usize = 4096;
/// Most requests that may wait, whatever a flag says.
pub const QUEUE_MAX: usize = 1000;
/// Most uploads that are read at once; more are refused.
pub const UPLOADS_MAX: usize = 16;
/// Most connections that are open at once; more wait to be taken.
pub const CONNECTIONS_MAX: usize = 512;
/// Most seconds until a request's head is there, also on a connection that is kept.
pub const HEAD_SECONDS_MAX: u64 = 20;
/// Most seconds in which nothing of a body comes.
pub const IDLE_SECONDS_MAX: u64 = 30;
/// Most seconds of an upload.
pub const UPLOAD_SECONDS_MAX: u64 = 120;
/// Most seconds of a deadline, whatever a flag or a request says.
pub const DEADLINE_SECONDS_MAX: u64 = 86_400;
/// Most bytes of the results that finished jobs keep; the oldest go first.
pub const RESULTS_BYTES_MAX: usize = 256 << 20;
/// Most seconds that a finished job is kept.
pub const RESULT_SECONDS_MAX: u64 = 600;
/// Most jobs that are remembered.
pub const JOBS_MAX: usize = 1000;
/// Most seconds that `Retry-After` says: above 120 clients give up.
pub const RETRY_SECONDS_MAX: u64 = 120;
/// Most letters of a request id that a caller gives.
pub const ID_LETTERS_MAX: usize = 64;
/// Most bytes of a file of keys.
pub const KEYS_BYTES_MAX: u64 = 65_536;
/// Most devices of one server.
pub const DEVICES_MAX: usize = 64;

/// Seconds as a duration.
#[cfg(all(feature = "serve", unix))]
pub(super) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
