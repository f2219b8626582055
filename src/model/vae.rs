//! FLUX's autoencoder, channels last: pictures [H, W, 3] to moments [H/8, W/8, 32] and latents back to pictures.
//!
//! As in the official code, the encoder works in bf16 (under autocast), the decoder keeps its activations in f32. The
//! official decoder multiplies as TF32; here what is bounded (latents, results of group norms) is multiplied as f16, which has
//! TF32's mantissa at twice its speed, and everything else (upsampling, shortcuts) as TF32.
//!
//! The decoder needs most memory where the channels of the finest level halve: there the picture is widest. Large pictures
//! pass that block in strips ([`Strips`]), with the same values to the bit.

use super::config::VaeConfig;
use crate::graph::{Graph, TensorId};
use crate::ops::{Add, Attention, Conv2d, Segment};
use crate::tensor::DType;

/// Element types of one direction.
#[derive(Clone, Copy)]
struct Types {
    /// What convolutions write and residual sums add up.
    stream: DType,
    /// What group norms write and the products after them read.
    normed: DType,
}

const ENCODER: Types = Types { stream: DType::BF16, normed: DType::BF16 };
const DECODER: Types = Types { stream: DType::F32, normed: DType::F16 };

/// Where the decoder works in strips. That depends on the picture alone, not on the memory that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strips {
    /// Pixels of the largest picture that passes a block of halved channels whole.
    pub whole: usize,
    /// Pixels of a strip, about.
    pub pixels: usize,
}

impl Strips {
    /// Of pictures beyond 1024×1024, where memory is scarce. 128 rows of 2048 pixels are eight tiles for each multiprocessor of
    /// an H100.
    pub const USUAL: Strips = Strips { whole: 1024 * 1024, pixels: 128 * 2048 };

    /// Rows of a strip; none if such a picture stays whole.
    fn height(self, height: usize, width: usize) -> Option<usize> {
        // Whole tiles of the convolutions, where that is possible.
        let rows = (self.pixels / width).max(2);
        (height * width > self.whole).then(|| if rows < TILE { rows } else { rows / TILE * TILE })
    }
}

/// Rows of a tile of the fastest kernel.
const TILE: usize = 16;

/// What the decoder takes latents in.
pub const LATENTS: DType = DECODER.normed;

/// Records the encoder: picture in [-1, 1] to mean and logarithm of the variance, side by side in the channels.
pub fn encoder(g: &mut Graph, config: &VaeConfig, picture: TensorId) -> TensorId {
    let types = ENCODER;
    g.scoped("encoder", |g| {
        let mut h = g.conv3x3("conv_in", picture, config.channels[0], Conv2d::SAME, types.stream);
        for (level, &channels) in config.channels.iter().enumerate() {
            g.scoped(format_args!("down.{level}"), |g| {
                for i in 0..config.blocks {
                    h = resnet(g, types, &format!("block.{i}"), h, channels);
                }
                if level + 1 < config.channels.len() {
                    h = g.conv3x3("downsample.conv", h, channels, Conv2d::HALVE, types.stream);
                }
            });
        }
        h = middle(g, types, h);
        let h = g.group_norm("norm_out", h, true, types.normed);
        g.conv3x3("conv_out", h, 2 * config.latent, Conv2d::SAME, types.stream)
    })
}

/// Records the decoder: unscaled latents to a picture, not yet clamped to [-1, 1].
pub fn decoder(g: &mut Graph, config: &VaeConfig, latents: TensorId) -> TensorId {
    decoder_in_strips(g, config, latents, Strips::USUAL)
}

/// As [`decoder`], with other strips.
pub fn decoder_in_strips(g: &mut Graph, config: &VaeConfig, latents: TensorId, strips: Strips) -> TensorId {
    let types = DECODER;
    g.scoped("decoder", |g| {
        let deepest = *config.channels.last().expect("four levels");
        let mut h = g.conv3x3("conv_in", latents, deepest, Conv2d::SAME, types.stream);
        h = middle(g, types, h);
        // `up` is indexed by level: the coarsest runs first.
        for (level, &channels) in config.channels.iter().enumerate().rev() {
            g.scoped(format_args!("up.{level}"), |g| {
                for i in 0..config.blocks + 1 {
                    let name = format!("block.{i}");
                    let [height, width, c] = g.shape(h).0[..] else { unreachable!("a picture") };
                    h = match strips.height(height, width).filter(|_| c == 2 * channels) {
                        Some(rows) => halving_resnet_in_strips(g, types, &name, h, rows),
                        None => resnet(g, types, &name, h, channels),
                    };
                }
                if level > 0 {
                    h = g.conv3x3("upsample.conv", h, channels, Conv2d::DOUBLE, types.stream);
                }
            });
        }
        let h = g.group_norm("norm_out", h, true, types.normed);
        g.conv3x3("conv_out", h, 3, Conv2d::SAME, types.stream)
    })
}

fn middle(g: &mut Graph, types: Types, h: TensorId) -> TensorId {
    let channels = g.cols_of(h);
    g.scoped("mid", |g| {
        let h = resnet(g, types, "block_1", h, channels);
        let h = attention(g, types, "attn_1", h);
        resnet(g, types, "block_2", h, channels)
    })
}

fn resnet(g: &mut Graph, types: Types, name: &str, x: TensorId, channels: usize) -> TensorId {
    g.scoped(name, |g| {
        // The shortcut comes first: where it halves the channels, x is then done with after the first norm.
        let skip = if g.cols_of(x) == channels { x } else { conv1x1(g, "nin_shortcut", x, channels, types.stream) };
        let h = g.group_norm("norm1", x, true, types.normed);
        let h = g.conv3x3("conv1", h, channels, Conv2d::SAME, types.stream);
        let h = g.group_norm("norm2", h, true, types.normed);
        let h = g.conv3x3("conv2", h, channels, Conv2d::SAME, types.stream);
        g.op_into("residual", Add, &[h, skip], &[h]);
        h
    })
}

/// As [`resnet`] to half as many channels, in less memory: x is normed strip by strip, and what comes of it lies in x's own
/// place.
///
/// A row of a result has half the bytes of a row of x. In strips from the top, the first convolution writes the first half of
/// x's rows: with the results of rows a..b, what was rows a/2..b/2 of x. Those are done with, while x is still read from row
/// b - 1 on. The second one reads that half and writes the other. Beside x and the shortcut there is never more than a strip.
/// The shortcut is one product over all rows, as it is without strips: its sums stay the same.
fn halving_resnet_in_strips(g: &mut Graph, types: Types, name: &str, x: TensorId, strip: usize) -> TensorId {
    assert!(strip >= 2, "a strip of one row would overwrite the row of x that the next one reads first");
    g.scoped(name, |g| {
        let [height, width, c] = g.shape(x).0[..] else { unreachable!("a picture") };
        let skip = conv1x1(g, "nin_shortcut", x, c / 2, types.stream);
        let pixels = g.reshape(x, [2 * height * width, c / 2]);
        let [first, second] = [0, 1].map(|half| {
            let half = g.rows(pixels, half * height * width..(half + 1) * height * width);
            g.reshape(half, [height, width, c / 2])
        });
        g.normed_conv3x3_in_strips(["norm1", "conv1"], x, types.normed, strip, first);
        g.normed_conv3x3_in_strips(["norm2", "conv2"], first, types.normed, strip, second);
        g.op_into("residual", Add, &[skip, second], &[skip]);
        skip
    })
}

/// One head over all pixels.
fn attention(g: &mut Graph, types: Types, name: &str, x: TensorId) -> TensorId {
    g.scoped(name, |g| {
        let shape = g.shape(x).clone();
        let (pixels, c) = (shape.rows(), shape.cols());
        let n = g.group_norm("norm", x, false, types.normed);
        let qkv = ["q", "k", "v"].map(|name| {
            let projected = conv1x1(g, name, n, c, types.normed);
            g.reshape(projected, [pixels, c])
        });
        let attended =
            g.op("attend", Attention { heads: 1, kv_heads: 1, causal: false, segments: vec![Segment::all(0..pixels)] }, &qkv);
        let attended = g.reshape(attended, shape);
        let h = conv1x1(g, "proj_out", attended, c, types.stream);
        g.op_into("residual", Add, &[h, x], &[h]);
        h
    })
}

/// A 1×1 convolution is a product.
fn conv1x1(g: &mut Graph, name: &str, x: TensorId, channels: usize, result: DType) -> TensorId {
    let c = g.cols_of(x);
    g.linear(name, x, channels).stored_as([channels, c, 1, 1]).result(result).op()
}
