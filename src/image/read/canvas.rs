//! Where a reader puts its rows: samples of any layout become 8-bit sRGB, one row at a time.
//!
//! Beside the picture itself a row or two are held. The order is fixed: alpha is taken out of premultiplied colours, the
//! profile is applied, 16 bits become 8, and at last what is transparent is put on the background.

use anyhow::{Result, ensure};

use super::colour::{Conversion, Stated};
use super::samples::{Colour, Layout, Opacity, Sample};
use super::{Alpha, Decoded, Reading};
use crate::error::ResourceError;
use crate::image::Rgb;
use crate::reserve::try_reserve;

/// A picture in the making.
pub(super) struct Canvas {
    width: usize,
    height: usize,
    layout: Layout,
    conversion: Option<Conversion>,
    rule: Alpha,
    background: [u8; 3],
    rgb: Vec<u8>,
    /// Filled only if alpha is kept.
    alpha: Vec<u8>,
    transparent: bool,
    pub(super) notes: Vec<String>,
}

impl Canvas {
    /// An empty picture of this size, with the notes that its colours call for.
    ///
    /// # Errors
    ///
    /// A [`ResourceError`] if there is no memory for it.
    pub(super) fn new(size: (usize, usize), layout: Layout, stated: Stated, reading: &Reading) -> Result<Canvas> {
        let mut canvas = Canvas::without_memory(size, layout, stated, reading);
        reserve(&mut canvas.rgb, size.0 * size.1 * 3, size, reading)?;
        if canvas.keeps_alpha() {
            reserve(&mut canvas.alpha, size.0 * size.1, size, reading)?;
        }
        Ok(canvas)
    }

    /// A picture whose samples, of at least 3 channels of 8 bits, are all there; it is made in their memory.
    pub(super) fn adopting(
        mut samples: Vec<u8>,
        size: (usize, usize),
        layout: Layout,
        stated: Stated,
        reading: &Reading,
    ) -> Canvas {
        let mut canvas = Canvas::without_memory(size, layout, stated, reading);
        let (width, per_row) = (size.0, size.0 * layout.channels());
        if layout.colour != Colour::Rgb || layout.opacity != Opacity::Opaque || canvas.conversion.is_some() {
            for y in 0..samples.len() / per_row {
                let pixels = canvas.convert(&samples[y * per_row..][..per_row]);
                samples[y * width * 3..][..width * 3].copy_from_slice(&pixels.rgb);
                if canvas.keeps_alpha() {
                    canvas.alpha.extend_from_slice(&pixels.alpha);
                }
            }
            samples.truncate(samples.len() / layout.channels() * 3);
        }
        canvas.rgb = samples;
        canvas
    }

    fn without_memory((width, height): (usize, usize), layout: Layout, stated: Stated, reading: &Reading) -> Canvas {
        let (conversion, notes) = conversion(stated, layout, reading);
        let &Reading { alpha: rule, background, .. } = reading;
        Canvas { width, height, layout, conversion, rule, background, rgb: vec![], alpha: vec![], transparent: false, notes }
    }

    fn keeps_alpha(&self) -> bool {
        self.rule == Alpha::Keep && self.layout.opacity != Opacity::Opaque
    }

    /// Adds the next rows, of `width · channels` samples each.
    pub(super) fn rows<T: Sample>(&mut self, samples: &[T]) {
        for row in samples.chunks_exact(self.width * self.layout.channels()) {
            let pixels = self.convert(row);
            self.rgb.extend_from_slice(&pixels.rgb);
            if self.keeps_alpha() {
                self.alpha.extend_from_slice(&pixels.alpha);
            }
        }
    }

    /// Puts pixels into row `y`, at `first`, `first + step` and so on.
    pub(super) fn scatter<T: Sample>(&mut self, y: usize, first: usize, step: usize, samples: &[T]) {
        let pixels = self.convert(samples);
        let (until, row) = ((y + 1) * self.width, y * self.width);
        if self.rgb.len() < until * 3 {
            self.rgb.resize(until * 3, 0);
        }
        for (target, pixel) in
            self.rgb[row * 3..until * 3].chunks_exact_mut(3).skip(first).step_by(step).zip(pixels.rgb.chunks_exact(3))
        {
            target.copy_from_slice(pixel);
        }
        if self.keeps_alpha() {
            self.alpha.resize(self.alpha.len().max(until), 0);
            for (target, alpha) in self.alpha[row..until].iter_mut().skip(first).step_by(step).zip(&pixels.alpha) {
                *target = *alpha;
            }
        }
    }

    /// The finished picture, with a note if something in it is transparent.
    ///
    /// # Errors
    ///
    /// If rows are missing.
    pub(super) fn finish(mut self) -> Result<Decoded> {
        let missing = (self.width * self.height * 3).saturating_sub(self.rgb.len()).div_ceil(self.width * 3);
        ensure!(
            missing == 0,
            "{missing} of its {} rows are missing: the file was cut short; copy or download it again",
            self.height
        );
        if self.transparent && self.rule == Alpha::Composite {
            let background = match self.background {
                [255, 255, 255] => "white".to_string(),
                [r, g, b] => format!("#{r:02x}{g:02x}{b:02x}"),
            };
            self.notes.push(format!(
                "the picture is transparent in places, which are shown on {background}; --background COLOUR chooses another \
                 colour, --alpha keep also keeps them transparent"
            ));
        }
        let alpha = (self.transparent && self.rule == Alpha::Keep).then_some(self.alpha);
        Ok(Decoded { picture: Rgb { width: self.width, height: self.height, data: self.rgb }, alpha, notes: self.notes })
    }

    /// A run of samples as 8-bit sRGB on the background, and its alpha.
    fn convert<T: Sample>(&mut self, samples: &[T]) -> Pixels {
        let Layout { colour, opacity, .. } = self.layout;
        if opacity == Opacity::Opaque {
            return Pixels { rgb: to_rgb(samples, colour, self.conversion.as_ref()), alpha: vec![] };
        }
        let count = colour.channels();
        let per_pixel = || samples.chunks_exact(count + 1);
        let alpha: Vec<u8> = per_pixel().map(|pixel| pixel[count].level()).collect();
        let colours: Vec<T> = match opacity {
            Opacity::Associated => {
                per_pixel().flat_map(|pixel| pixel[..count].iter().map(|s| s.divided_by(pixel[count]))).collect()
            }
            _ => per_pixel().flat_map(|pixel| &pixel[..count]).copied().collect(),
        };
        let mut rgb = to_rgb(&colours, colour, self.conversion.as_ref());
        self.transparent |= alpha.iter().any(|alpha| *alpha < 255);
        if self.rule != Alpha::Drop {
            for (pixel, alpha) in rgb.chunks_exact_mut(3).zip(&alpha) {
                for (sample, background) in pixel.iter_mut().zip(self.background) {
                    *sample = over(*sample, *alpha, background);
                }
            }
        }
        Pixels { rgb, alpha }
    }
}

/// A run of pixels; `alpha` is empty if they are opaque.
struct Pixels {
    rgb: Vec<u8>,
    alpha: Vec<u8>,
}

/// How the stated colours become sRGB, and what is to be said about it.
fn conversion(stated: Stated, layout: Layout, reading: &Reading) -> (Option<Conversion>, Vec<String>) {
    let mut notes = vec![];
    let mut found = None;
    if !reading.ignore_profile {
        let made = match stated {
            Stated::Srgb => Ok(None),
            Stated::Unusable(why) => Err(why),
            Stated::Profile(profile, name) => Conversion::new(&profile, layout.colour).map(|made| made.map(|made| (made, name))),
        };
        match made {
            Ok(None) => {}
            Ok(Some((conversion, name))) => {
                let from = if layout.colour == Colour::Cmyk { format!("CMYK by the profile {name}") } else { name };
                notes.push(format!(
                    "the picture's colours were converted from {from} to sRGB; --ignore-profile takes them as they are"
                ));
                found = Some(conversion);
            }
            Err(why) => notes.push(format!("the picture's colour profile {why}, so it is not used; colours may look different")),
        }
    }
    if layout.colour == Colour::Cmyk && found.is_none() {
        notes.push(
            "the picture is CMYK (meant for printing) and was converted to RGB without a profile; colours may look different"
                .into(),
        );
    }
    (found, notes)
}

/// That many bytes of zero, which take memory only when they are written.
///
/// # Errors
///
/// A [`ResourceError`] if they cannot be had.
pub(super) fn zeroed(bytes: usize, size: (usize, usize), reading: &Reading) -> Result<Vec<u8>> {
    reserve(&mut Vec::new(), bytes, size, reading)?;
    Ok(vec![0; bytes])
}

fn reserve(samples: &mut Vec<u8>, bytes: usize, size: (usize, usize), reading: &Reading) -> Result<()> {
    reading.afford(size, bytes)?;
    let (width, height) = size;
    if try_reserve(samples, bytes).is_err() {
        let text = format!(
            "reading this picture of {width}x{height} pixels needs {} MB of memory, which cannot be had; scale it down first",
            bytes.div_ceil(1_000_000)
        );
        return Err(ResourceError(text).into());
    }
    Ok(())
}

/// Colour samples without alpha as 8-bit RGB.
fn to_rgb<T: Sample>(samples: &[T], colour: Colour, conversion: Option<&Conversion>) -> Vec<u8> {
    let Some(conversion) = conversion else {
        return match colour {
            Colour::Grey => samples.iter().flat_map(|sample| [sample.level(); 3]).collect(),
            Colour::Rgb => samples.iter().map(|sample| sample.level()).collect(),
            Colour::Cmyk => samples.chunks_exact(4).flat_map(|ink| paper([0, 1, 2, 3].map(|i| ink[i].level()))).collect(),
        };
    };
    let wide: Vec<u16> = match (colour, conversion.takes) {
        (Colour::Grey, Colour::Rgb) => samples.iter().flat_map(|sample| [sample.wide(); 3]).collect(),
        _ => samples.iter().map(|sample| sample.wide()).collect(),
    };
    conversion.apply(&wide).into_iter().map(u16::level).collect()
}

/// What white paper keeps of each colour under these inks.
fn paper([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    [cyan, magenta, yellow].map(|ink| over(255 - ink, 255 - black, 0))
}

/// `colour` with this opacity on `background`, rounded to nearest.
fn over(colour: u8, alpha: u8, background: u8) -> u8 {
    let (colour, alpha, background) = (u32::from(colour), u32::from(alpha), u32::from(background));
    ((colour * alpha + background * (255 - alpha) + 127) / 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_invisible_decides_nothing() {
        for hidden in [0, 90, 255] {
            assert_eq!(over(hidden, 0, 255), 255);
            assert_eq!(over(hidden, 255, 7), hidden);
        }
        assert_eq!((over(0, 128, 255), over(200, 51, 100)), (127, 120));
    }
}
