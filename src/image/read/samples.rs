//! The samples of a pixel: what they mean, how they are laid out, and of how many bits they are.

/// What the colour samples of a pixel mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Grey,
    Rgb,
    /// Amounts of ink.
    Cmyk,
}

impl Colour {
    pub(super) fn channels(self) -> usize {
        match self {
            Colour::Grey => 1,
            Colour::Rgb => 3,
            Colour::Cmyk => 4,
        }
    }
}

/// Whether alpha follows the colour samples of a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opacity {
    Opaque,
    Straight,
    /// Colours have been multiplied with alpha.
    Associated,
}

/// How the samples of a pixel are laid out, of 8 or 16 bits each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) colour: Colour,
    pub(super) opacity: Opacity,
}

impl Layout {
    /// Samples without alpha.
    pub(super) fn opaque(colour: Colour) -> Layout {
        Layout { colour, opacity: Opacity::Opaque }
    }

    pub(super) fn channels(self) -> usize {
        self.colour.channels() + usize::from(self.opacity != Opacity::Opaque)
    }
}

/// A sample of 8 or 16 bits.
pub(super) trait Sample: Copy {
    /// Nearest of the 256 levels.
    fn level(self) -> u8;
    /// As a sample of 16 bits.
    fn wide(self) -> u16;
    /// The colour that was multiplied with this alpha; 0 where nothing can be seen.
    fn divided_by(self, alpha: Self) -> Self;
}

impl Sample for u8 {
    fn level(self) -> u8 {
        self
    }

    fn wide(self) -> u16 {
        257 * u16::from(self)
    }

    fn divided_by(self, alpha: u8) -> u8 {
        let (colour, alpha) = (u32::from(self) * 255, u32::from(alpha));
        (colour + alpha / 2).checked_div(alpha).unwrap_or(0).min(255) as u8
    }
}

impl Sample for u16 {
    fn level(self) -> u8 {
        // 65535 = 257 · 255
        ((u32::from(self) + 128) / 257) as u8
    }

    fn wide(self) -> u16 {
        self
    }

    fn divided_by(self, alpha: u16) -> u16 {
        let (colour, alpha) = (u64::from(self) * 65_535, u64::from(alpha));
        (colour + alpha / 2).checked_div(alpha).unwrap_or(0).min(65_535) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bits_round_to_the_nearest_level() {
        assert_eq!([0, 128, 129, 257, 65_407, 65_535].map(u16::level), [0, 0, 1, 1, 255, 255]);
        for level in 0..=255u16 {
            assert_eq!(u16::from((level * 257).level()), level);
        }
    }

    #[test]
    fn premultiplied_colours_come_back() {
        for (colour, alpha) in [(255u8, 255u8), (200, 100), (1, 254), (0, 9)] {
            let multiplied = ((u32::from(colour) * u32::from(alpha) + 127) / 255) as u8;
            assert!(multiplied.divided_by(alpha).abs_diff(colour) <= 1, "{colour} of {alpha}");
        }
        assert_eq!((9u8.divided_by(0), 9u16.divided_by(0), 200u8.divided_by(100)), (0, 0, 255));
        assert_eq!(30_000u16.divided_by(60_000), 32_768);
    }
}
