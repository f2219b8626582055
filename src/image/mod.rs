//! Pictures at the edges of the program: read from a file, resized as the reference resizes, written back.
//!
//! Everything is 8-bit sRGB between these edges. [`decode`] accepts what people have, [`resize`] equals Pillow 11.1's
//! `Image.resize` bit for bit, because the model was conditioned on pictures made by it, and [`Output`] finds out before
//! the work whether its result can be stored.

mod encode;
mod output;
mod read;
mod resize;
mod stream;

pub use encode::{Format, JPEG_QUALITY, encode, encode_at};
pub use output::Output;
pub use read::{Alpha, Decoded, Reading, claimed_size, decode, decode_bytes, decode_from, quieten_decoders, read_file};
pub use resize::{Filter, resize, resize_alpha, resize_as_torchvision, working_size};
pub use stream::Stream;

/// An 8-bit RGB picture; `data` is [height, width, 3], row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Columns, at least 1.
    pub width: usize,
    /// Rows, at least 1.
    pub height: usize,
    /// `height · width · 3` bytes, interleaved: r, g, b of the top left pixel first.
    pub data: Vec<u8>,
}
