//! What a file is, by its first bytes: a picture that is read, or something else that has a name and a remedy.

use anyhow::{Result, bail, ensure};

/// Formats by their names, as messages list them.
const READABLE: &str = "JPEG, PNG, WebP, GIF, BMP, TIFF and JPEG XL";

/// A format that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
    Tiff,
    JpegXl,
}

/// The format of a picture's bytes.
///
/// # Errors
///
/// If it is none that is read; the message names what it is, where that is known, and what helps.
pub(super) fn of(bytes: &[u8]) -> Result<Format> {
    ensure!(!bytes.is_empty(), "the file is empty; give a picture: {READABLE} can be read");
    let riff_webp = bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP");
    let known: [(bool, Format); 11] = [
        (bytes.starts_with(b"\xff\xd8"), Format::Jpeg),
        (bytes.starts_with(super::png::SIGNATURE), Format::Png),
        (riff_webp, Format::WebP),
        (bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a"), Format::Gif),
        (bytes.starts_with(b"BM"), Format::Bmp),
        (bytes.starts_with(b"\xff\x0a"), Format::JpegXl),
        (bytes.starts_with(b"\0\0\0\x0cJXL \r\n\x87\n"), Format::JpegXl),
        (bytes.starts_with(b"II*\0"), Format::Tiff),
        (bytes.starts_with(b"MM\0*"), Format::Tiff),
        (bytes.starts_with(b"II+\0"), Format::Tiff),
        (bytes.starts_with(b"MM\0+"), Format::Tiff),
    ];
    // Canon's raw files begin as TIFF files do.
    if bytes.get(8..10) == Some(b"CR") && bytes.starts_with(b"II*\0") {
        return Err(raw());
    }
    if let Some((_, format)) = known.into_iter().find(|(is_it, _)| *is_it) {
        return Ok(format);
    }
    refuse(bytes)
}

/// The refusal of a camera's raw file.
pub(super) fn raw() -> anyhow::Error {
    convert("a camera's raw file", "darktable-cli in.raw out.png")
}

fn convert(what: &str, command: &str) -> anyhow::Error {
    anyhow::anyhow!("it is {what}, which cannot be read; convert it first, for example with `{command}`")
}

/// Signatures of pictures that are not read: where, which bytes, the name and a command that converts.
#[rustfmt::skip]
const FOREIGN: &[(usize, &[u8], &str, &str)] = &[
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture", "opj_decompress -i in.jp2 -o out.png"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture", "opj_decompress -i in.j2k -o out.png"),
    (0, b"\xff\xd8\xff\xf7", "a JPEG-LS picture", "ffmpeg -i in.jls out.png"),
    (0, b"8BPS", "a Photoshop file (PSD)", "magick 'in.psd[0]' out.png"),
    (0, b"%PDF", "a PDF document", "pdftoppm -png -r 150 in.pdf out"),
    (0, b"%!PS", "a PostScript document", "gs -sDEVICE=png16m -r150 -o out.png in.eps"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript document (EPS)", "gs -sDEVICE=png16m -r150 -o out.png in.eps"),
    (0, b"gimp xcf", "a GIMP file (XCF)", "magick in.xcf -flatten out.png"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR picture", "magick in.exr out.png"),
    (0, b"#?R", "a Radiance HDR picture", "magick in.hdr out.png"),
    (0, b"qoif", "a QOI picture", "magick in.qoi out.png"),
    (0, b"DDS ", "a DirectDraw texture (DDS)", "magick in.dds out.png"),
    (0, b"farbfeld", "a farbfeld picture", "magick in.ff out.png"),
    (0, b"\0\0\x01\0", "a Windows icon (ICO)", "magick 'in.ico[0]' out.png"),
    (0, b"icns", "an Apple icon (ICNS)", "icns2png -x in.icns"),
    (0, b"BPG\xfb", "a BPG picture", "bpgdec -o out.png in.bpg"),
    (0, b"FLIF", "a FLIF picture", "flif -d in.flif out.png"),
    (0, b"\x8aMNG\r\n\x1a\n", "an MNG animation", "magick 'in.mng[0]' out.png"),
    (0, b"\x8bJNG\r\n\x1a\n", "a JNG picture", "magick in.jng out.png"),
    (0, b"AT&TFORM", "a DjVu document", "ddjvu -format=ppm in.djvu out.ppm"),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)", "soffice --convert-to png in.wmf"),
    (0, b"IIRO", "a camera's raw file (ORF)", "darktable-cli in.orf out.png"),
    (0, b"IIRS", "a camera's raw file (ORF)", "darktable-cli in.orf out.png"),
    (0, b"MMOR", "a camera's raw file (ORF)", "darktable-cli in.orf out.png"),
    (0, b"IIU\0", "a camera's raw file (RW2)", "darktable-cli in.rw2 out.png"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file (RAF)", "darktable-cli in.raf out.png"),
    (0, b"\0MRM", "a camera's raw file (MRW)", "darktable-cli in.mrw out.png"),
    (0, b"FOVb", "a camera's raw file (X3F)", "x3f_extract -tiff in.x3f"),
    (4, b"ftypheic", "a HEIC picture", "heif-convert in.heic out.png"),
    (4, b"ftypheix", "a HEIC picture", "heif-convert in.heic out.png"),
    (4, b"ftyphevc", "a HEIC picture", "heif-convert in.heic out.png"),
    (4, b"ftyphevx", "a HEIC picture", "heif-convert in.heic out.png"),
    (4, b"ftypheim", "a HEIC picture", "heif-convert in.heic out.png"),
    (4, b"ftypheis", "a HEIC picture", "heif-convert in.heic out.png"),
    (4, b"ftypavif", "an AVIF picture", "avifdec in.avif out.png"),
    (4, b"ftypavis", "an AVIF animation", "avifdec in.avif out.png"),
    (4, b"ftypcrx ", "a camera's raw file (CR3)", "darktable-cli in.cr3 out.png"),
    (4, b"ftyp", "a film (MP4 or MOV)", "ffmpeg -i in.mp4 -frames:v 1 out.png"),
    (0, b"\x1a\x45\xdf\xa3", "a film (Matroska or WebM)", "ffmpeg -i in.mkv -frames:v 1 out.png"),
    (8, b"AVI ", "a film (AVI)", "ffmpeg -i in.avi -frames:v 1 out.png"),
    (0, b"PK\x03\x04", "a ZIP archive", "unzip in.zip"),
    (0, b"\x1f\x8b", "a gzip archive", "gunzip in.gz"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "7z x in.7z"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unrar x in.rar"),
];

fn refuse(bytes: &[u8]) -> Result<Format> {
    // HEIC and AVIF also come under the names of their container, with their own name in the list that follows.
    if let Some(b"ftypmif1" | b"ftypmsf1" | b"ftypmiaf") = bytes.get(4..12) {
        let brands = &bytes[12..bytes.len().min(64)];
        return Err(match brands.windows(4).any(|brand| brand == b"avif") {
            true => convert("an AVIF picture", "avifdec in.avif out.png"),
            false => convert("a HEIC picture (HEIF)", "heif-convert in.heic out.png"),
        });
    }
    if let Some((.., what, command)) = FOREIGN.iter().find(|(at, mark, ..)| bytes[bytes.len().min(*at)..].starts_with(mark)) {
        return Err(convert(what, command));
    }
    if bytes.iter().all(|byte| *byte == 0) {
        bail!("all its {} bytes are zero, so it holds no picture; copy or download it again", bytes.len());
    }
    refuse_text(&bytes[..bytes.len().min(4096)])?;
    bail!("it is not a known picture format; {READABLE} can be read")
}

/// Names what is written in letters, by the first of its bytes.
fn refuse_text(start: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(start).to_lowercase();
    let text = text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']);
    ensure!(
        !text.starts_with("version https://git-lfs"),
        "it is a Git LFS pointer, not the picture itself; fetch the picture with `git lfs pull`"
    );
    let is_web_page = ["<!doctype html", "<html", "<head", "<body"].iter().any(|tag| text.starts_with(tag))
        || text.starts_with("<!--") && text.contains("<html");
    ensure!(
        !is_web_page,
        "it is a web page (HTML), not a picture, so the download went wrong; open its address in a browser and save the picture itself"
    );
    if text.contains("<svg") {
        return Err(convert("an SVG drawing", "rsvg-convert in.svg -o out.png"));
    }
    if let Some(kind) = text
        .as_bytes()
        .get(..3)
        .filter(|mark| mark[0] == b'p' && (b'1'..=b'7').contains(&mark[1]) && mark[2].is_ascii_whitespace())
    {
        let name = if kind[1] == b'7' { "a PAM picture" } else { "a Netpbm picture (PBM, PGM or PPM)" };
        return Err(convert(name, "magick in.ppm out.png"));
    }
    ensure!(
        !text.starts_with("<?xml"),
        "it is an XML document, not a picture, perhaps the error message of a server; download the picture again"
    );
    let printable = |c: char| !c.is_control() || c.is_whitespace();
    ensure!(
        text.contains('\u{fffd}') || !text.chars().all(printable),
        "it is a text, which is not a known picture format (it begins with {:?}); {READABLE} can be read",
        text.chars().take(32).collect::<String>()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        of(bytes).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_readable_picture_is_named_with_what_helps() {
        for (bytes, words) in [
            (&b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..], ["HEIC", "heif-convert"]),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", ["AVIF", "avifdec"]),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", ["HEIC", "heif-convert"]),
            (b"\0\0\0\x20ftypavif\0\0\0\0", ["AVIF", "avifdec"]),
            (b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ", ["JPEG 2000", "opj_decompress"]),
            (b"8BPS\0\x01", ["PSD", "magick"]),
            (b"%PDF-1.7", ["PDF", "pdftoppm"]),
            (b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg xmlns=''/>", ["SVG", "rsvg-convert"]),
            (b"II*\0\x10\0\0\0CR\x02\0", ["raw file", "darktable-cli"]),
            (b"FUJIFILMCCD-RAW 0201", ["raw file", "darktable-cli"]),
            (b"\n <!DOCTYPE HTML><html>", ["web page", "download"]),
            (b"<?xml version='1.0'?><Error><Code>AccessDenied", ["XML", "download"]),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:", ["Git LFS", "git lfs pull"]),
            (b"{\"error\": \"not found\"}", ["text", "not found"]),
            (b"P6\n3 2\n255\n\x80", ["Netpbm", "magick"]),
            (b"\0\0\0\0\0\0\0\0\0", ["zero", "download"]),
            (b"", ["empty", "PNG"]),
            (b"\x01\x02\xff\xfe\x07", ["not a known picture format", "PNG"]),
        ] {
            let message = refusal(bytes);
            assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
        }
    }

    #[test]
    fn bytes_too_short_for_a_signature_are_no_fault() {
        for (at, mark, ..) in FOREIGN {
            let whole = [&vec![1; *at][..], mark].concat();
            for cut in 1..whole.len() {
                let _ = of(&whole[..cut]);
            }
        }
    }
}
