//! From the colours that a file states to sRGB.
//!
//! A file states its colours by an ICC profile, by a code of ITU-T H.273 (cICP), or by gamma and primaries. Each becomes a
//! profile here, and a profile becomes a conversion of rows of samples, with the perceptual intent, which for a profile of
//! a matrix and curves is the colorimetric one. What is sRGB already, to the nearest level, needs no conversion.

use std::sync::Arc;

use moxcms::{
    Chromaticity, CicpColorPrimaries, CicpProfile, ColorPrimaries, ColorProfile, DataColorSpace, MatrixCoefficients,
    ParsingOptions, ProfileText, RenderingIntent, ToneReprCurve, TransferCharacteristics, Transform16BitExecutor,
    TransformOptions,
};

use super::samples::{Colour, Sample};

/// Largest ICC profile that is used, in bytes. Profiles of displays have a few kB, those of printing presses up to 3 MB.
pub(super) const PROFILE_BYTES_MAX: usize = 4 << 20;

/// Luminance in cd/m² that HDR pictures give to the white of ordinary ones (ITU-R BT.2408).
const HDR_WHITE: f32 = 203.0;

/// Entries of the table of a curve that is no ICC curve.
const CURVE_ENTRIES: u16 = 4096;

/// What a file says about its colours.
pub(super) enum Stated {
    /// Nothing, or plainly sRGB.
    Srgb,
    /// A profile and the name that notes call it by.
    Profile(Box<ColorProfile>, String),
    /// Something that cannot be used; the words complete "its colour profile …".
    Unusable(String),
}

impl Stated {
    /// What the bytes of an ICC profile state.
    pub(super) fn icc(bytes: &[u8]) -> Stated {
        if bytes.len() > PROFILE_BYTES_MAX {
            return Stated::too_large();
        }
        let options = ParsingOptions { max_profile_size: PROFILE_BYTES_MAX, ..ParsingOptions::default() };
        match ColorProfile::new_from_slice_with_options(bytes, options) {
            Ok(mut profile) => {
                // The curves and tables of a profile are what other programs go by, not the code that may stand beside them.
                profile.cicp = None;
                let name = name(&profile);
                Stated::Profile(Box::new(profile), name)
            }
            Err(_) => Stated::Unusable("is damaged or of an unknown kind".into()),
        }
    }

    pub(super) fn too_large() -> Stated {
        Stated::Unusable(format!("is larger than {} MiB", PROFILE_BYTES_MAX >> 20))
    }

    /// What the four bytes of a cICP chunk state: primaries, transfer, matrix, full range.
    pub(super) fn cicp(code: [u8; 4]) -> Stated {
        let [primaries, transfer, matrix, full_range] = code;
        let unusable = || Stated::Unusable(format!("(cICP {primaries}-{transfer}-{matrix}-{full_range}) is of an unknown kind"));
        if matrix != 0 || full_range != 1 {
            return unusable();
        }
        let (Ok(color_primaries), Ok(transfer_characteristics)) =
            (CicpColorPrimaries::try_from(primaries), TransferCharacteristics::try_from(transfer))
        else {
            return unusable();
        };
        let mut profile = ColorProfile::new_from_cicp(CicpProfile {
            color_primaries,
            transfer_characteristics,
            matrix_coefficients: MatrixCoefficients::Identity,
            full_range: true,
        });
        // The profile's own curves are used, since those of HDR are scaled to the white of ordinary pictures.
        profile.cicp = None;
        let mut name = cicp_name(primaries, transfer);
        if let Some((hdr, curve)) = hdr_curve(transfer_characteristics) {
            name = format!("HDR ({hdr}; what is brighter than paper white is cut off)");
            set_curve(&mut profile, &curve);
        }
        match profile.red_trc {
            Some(_) => Stated::Profile(Box::new(profile), name),
            None => unusable(),
        }
    }

    /// What gamma (the exponent that encodes, times 100000) and chromaticities (x, y of white, red, green, blue, times
    /// 100000) state.
    pub(super) fn gamma(gamma: Option<u32>, chromaticities: Option<[u32; 8]>) -> Stated {
        // Within 5 % of 1/2.2 the curve of sRGB is meant, as libpng has it: sRGB pictures are labelled so.
        let is_srgb_gamma = gamma.is_none_or(|gamma| gamma.abs_diff(45455) <= 45455 / 20);
        let chromaticities = chromaticities.filter(|found| *found != SRGB_CHROMATICITIES);
        if is_srgb_gamma && chromaticities.is_none() {
            return Stated::Srgb;
        }
        let mut profile = ColorProfile::new_srgb();
        profile.cicp = None;
        if let Some(numbers) = chromaticities {
            let at = |i: usize| Chromaticity { x: numbers[i] as f32 / 1e5, y: numbers[i + 1] as f32 / 1e5 };
            let (white, primaries) = (at(0), ColorPrimaries { red: at(2), green: at(4), blue: at(6) });
            profile.update_rgb_colorimetry(white.to_xyyb(), primaries);
            let colorants = profile.colorant_matrix();
            if !colorants.v.iter().flatten().all(|x| x.is_finite()) || numbers.contains(&0) {
                return Stated::Unusable("(gAMA, cHRM) is damaged".into());
            }
        }
        match gamma {
            Some(0) => return Stated::Unusable("(gAMA, cHRM) is damaged".into()),
            Some(gamma) => set_curve(&mut profile, &ToneReprCurve::Parametric(vec![1e5 / gamma as f32])),
            None => {}
        }
        let gamma = gamma.map_or(String::new(), |gamma| format!("gamma {:.2}", 1e5 / f64::from(gamma)));
        let primaries = chromaticities.map_or("", |_| "own primaries");
        let name = [gamma.as_str(), primaries].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
        Stated::Profile(Box::new(profile), name)
    }
}

/// What people call these primaries with this curve.
fn cicp_name(primaries: u8, transfer: u8) -> String {
    let colours = match primaries {
        1 => "BT.709",
        9 => "BT.2020",
        11 => "DCI-P3",
        12 => "Display P3",
        _ => return format!("cICP {primaries}-{transfer}"),
    };
    match transfer {
        8 => format!("linear {colours}"),
        1 | 6 | 13..=15 => colours.into(),
        _ => format!("{colours} with the curve {transfer}"),
    }
}

/// White, red, green and blue of sRGB as cHRM has them.
const SRGB_CHROMATICITIES: [u32; 8] = [31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000];

fn set_curve(profile: &mut ColorProfile, curve: &ToneReprCurve) {
    for channel in [&mut profile.red_trc, &mut profile.green_trc, &mut profile.blue_trc] {
        *channel = Some(curve.clone());
    }
}

/// Name and curve of an HDR transfer function, with 1.0 at the white of ordinary pictures.
fn hdr_curve(transfer: TransferCharacteristics) -> Option<(&'static str, ToneReprCurve)> {
    let (name, light): (_, fn(f32) -> f32) = match transfer {
        TransferCharacteristics::Smpte2084 => ("PQ", |signal| pq(signal) * 10_000.0 / HDR_WHITE),
        // A display of 1000 cd/m² shows HLG with an overall exponent of 1.2.
        TransferCharacteristics::Hlg => ("HLG", |signal| hlg(signal).powf(1.2) * 1_000.0 / HDR_WHITE),
        _ => return None,
    };
    let entry = |i: u16| (light(f32::from(i) / f32::from(CURVE_ENTRIES - 1)).clamp(0.0, 1.0) * 65_535.0).round() as u16;
    Some((name, ToneReprCurve::Lut((0..CURVE_ENTRIES).map(entry).collect())))
}

/// Light of a PQ signal (SMPTE ST 2084), 1.0 being 10000 cd/m².
fn pq(signal: f32) -> f32 {
    const M1: f32 = 2610.0 / 16384.0;
    const M2: f32 = 2523.0 / 32.0;
    const C1: f32 = 3424.0 / 4096.0;
    const C2: f32 = 2413.0 / 128.0;
    const C3: f32 = 2392.0 / 128.0;
    let power = signal.powf(1.0 / M2);
    ((power - C1).max(0.0) / (C2 - C3 * power)).powf(1.0 / M1)
}

/// Light of an HLG signal (ITU-R BT.2100), from 0 to 1.
fn hlg(signal: f32) -> f32 {
    const A: f32 = 0.178_832_77;
    const B: f32 = 0.284_668_92;
    const C: f32 = 0.559_910_73;
    if signal <= 0.5 { signal * signal / 3.0 } else { (((signal - C) / A).exp() + B) / 12.0 }
}

/// The profile's description in quotes, without what a terminal would act on.
fn name(profile: &ColorProfile) -> String {
    let text = match &profile.description {
        Some(ProfileText::PlainString(text)) => text.as_str(),
        Some(ProfileText::Localizable(texts)) => texts.first().map_or("", |text| &text.value),
        Some(ProfileText::Description(text)) => &text.ascii_string,
        None => "",
    };
    let text: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
    match text.trim() {
        "" => "an unnamed profile".into(),
        name => format!("{name:?}"),
    }
}

/// A conversion of rows of samples to sRGB.
///
/// It works with 16 bits in any case: tables for 8-bit samples round dark colours by a level.
pub(super) struct Conversion {
    /// What it takes: a grey picture is given to an RGB profile as RGB.
    pub(super) takes: Colour,
    executor: Arc<Transform16BitExecutor>,
}

impl Conversion {
    /// The conversion by a profile of such a picture; none if the profile is sRGB.
    ///
    /// # Errors
    ///
    /// If the profile is not for such a picture, in words that complete "its colour profile …".
    pub(super) fn new(profile: &ColorProfile, colour: Colour) -> Result<Option<Conversion>, String> {
        let (takes, layout) = match (profile.color_space, colour) {
            (DataColorSpace::Gray, Colour::Grey) => (Colour::Grey, moxcms::Layout::Gray),
            (DataColorSpace::Rgb, Colour::Grey | Colour::Rgb) => (Colour::Rgb, moxcms::Layout::Rgb),
            (DataColorSpace::Cmyk, Colour::Cmyk) => (Colour::Cmyk, moxcms::Layout::Rgba),
            (DataColorSpace::Gray, _) => return Err("is for grey pictures, which this is not".into()),
            (DataColorSpace::Rgb, _) => return Err("is for RGB pictures, which this is not".into()),
            (DataColorSpace::Cmyk, _) => return Err("is for CMYK pictures, which this is not".into()),
            _ => return Err("is neither for grey nor for RGB nor for CMYK pictures".into()),
        };
        let options = TransformOptions {
            rendering_intent: RenderingIntent::Perceptual,
            allow_use_cicp_transfer: false,
            prefer_fixed_point: false,
            ..TransformOptions::default()
        };
        let executor = profile.create_transform_16bit(layout, &ColorProfile::new_srgb(), moxcms::Layout::Rgb, options);
        let conversion = Conversion { takes, executor: executor.map_err(|_| "is of an unknown kind".to_string())? };
        Ok(if conversion.changes_nothing(colour) { None } else { Some(conversion) })
    }

    /// Whether the 8-bit colours of such a picture come out as they went in, to the nearest level.
    fn changes_nothing(&self, colour: Colour) -> bool {
        let pixels: Vec<[u8; 3]> = match colour {
            Colour::Grey => (0..=255).map(|level| [level; 3]).collect(),
            Colour::Rgb => {
                let levels = || (0..=255u8).step_by(15);
                let grid = levels().flat_map(|r| levels().flat_map(move |g| levels().map(move |b| [r, g, b])));
                grid.chain((0..=255).map(|level| [level; 3])).collect()
            }
            Colour::Cmyk => return false,
        };
        let samples: Vec<u16> =
            pixels.iter().flat_map(|pixel| &pixel[..self.takes.channels()]).map(|level| level.wide()).collect();
        let found = self.apply(&samples);
        pixels.as_flattened().iter().zip(found).all(|(expected, found)| expected.abs_diff(found.level()) <= 1)
    }

    /// Pixels as RGB.
    pub(super) fn apply(&self, pixels: &[u16]) -> Vec<u16> {
        let mut rgb = vec![0; pixels.len() / self.takes.channels() * 3];
        self.executor.transform(pixels, &mut rgb).expect("whole pixels");
        rgb
    }
}
