//! Flags of how a picture is read.

use clap::{Args, ValueEnum};

use super::values;
use crate::image::{Alpha, Reading};
use crate::pipeline::check_host_memory;

/// Largest picture from the command line, in pixels; phones make pictures of 200 megapixels.
const PIXELS_MAX: u64 = 300_000_000;

/// Flags of how a picture is read.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct PictureArgs {
    /// What becomes of a transparent picture
    #[arg(long, value_enum, default_value = "composite", help_heading = "Picture", hide_short_help = true)]
    alpha: AlphaArg,
    /// What shows through it: white, black, grey or #RRGGBB
    #[arg(long, default_value = "white", value_parser = values::colour, value_name = "COLOUR", help_heading = "Picture", hide_short_help = true)]
    background: [u8; 3],
    /// Take colours as they are stored instead of converting them to sRGB, as the official code does
    #[arg(long, help_heading = "Picture", hide_short_help = true)]
    ignore_profile: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AlphaArg {
    /// It is put on the background.
    Composite,
    /// The same, and the result becomes transparent where the picture is (PNG and WebP).
    Keep,
    /// Its hidden colours appear, as in the official code.
    Drop,
}

impl From<PictureArgs> for Reading {
    fn from(args: PictureArgs) -> Reading {
        Reading {
            pixels_max: PIXELS_MAX,
            alpha: match args.alpha {
                AlphaArg::Composite => Alpha::Composite,
                AlphaArg::Keep => Alpha::Keep,
                AlphaArg::Drop => Alpha::Drop,
            },
            background: args.background,
            ignore_profile: args.ignore_profile,
            check_memory: check_host_memory,
        }
    }
}
