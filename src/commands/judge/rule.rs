//! When an edit is right: what should have changed did, and the rest is as it was. Pure.

use serde::Deserialize;

use crate::image::Rgb;

/// Largest difference of a channel between pixels that match, of 255.
const TOLERANCE: u8 = 45;
/// A pixel belongs to the changed region if source and target differ by more in a channel, of 255: a noisy background that
/// comes to light counts too.
const CHANGE: u8 = 8;
/// Pixels around the changed region that do not count as outside it.
const MARGIN: usize = 3;
/// Most pixels that fail to match, in pixels of the changed region.
const CHANGED_MOST: f64 = 0.10;
/// And of the whole picture.
const PICTURE_MOST: f64 = 0.01;
/// Most pixels that fail to match outside, of those there.
const OUTSIDE_MOST: f64 = 0.01;
/// Largest mean difference outside, of 255.
const OUTSIDE_MEAN_MOST: f64 = 6.0;

/// Which colours match at an edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Edges {
    /// Those of the pixels there.
    #[default]
    Same,
    /// Those between them as well: drawn with hard edges or soft ones, a shape is the same.
    Any,
}

/// How far an edited picture is from its target. A pixel matches if one within a pixel of it in the other picture is within
/// [`TOLERANCE`] in every channel, looked for both ways.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measures {
    /// Pixels that fail to match, in pixels of the changed region.
    pub changed: f64,
    /// The same, as a share of the picture.
    pub picture: f64,
    /// Share of the pixels that fail to match outside the changed region.
    pub outside: f64,
    /// Mean difference of a channel there, of 255.
    pub mean: f64,
}

impl Measures {
    /// Of three pictures of one size, of which source and target differ.
    pub fn of(source: &Rgb, target: &Rgb, edited: &Rgb, edges: Edges) -> Measures {
        let (width, height) = (target.width, target.height);
        let changed: Vec<bool> = (0..width * height).map(|at| changes(source, target, at)).collect();
        let outside = |x: usize, y: usize| !near(x, y, MARGIN, width, height).any(|at| changed[at]);
        let wrong = |x: usize, y: usize| !(matches(target, edited, x, y, edges) && matches(edited, target, x, y, edges));
        let (mut failing, mut beyond, mut failing_beyond, mut levels) = (0, 0, 0, 0u64);
        for (x, y) in (0..height).flat_map(|y| (0..width).map(move |x| (x, y))) {
            let (fails, at) = (wrong(x, y), y * width + x);
            failing += fails as usize;
            if outside(x, y) {
                beyond += 1;
                failing_beyond += fails as usize;
                levels += pixel(target, at).iter().zip(pixel(edited, at)).map(|(a, b)| a.abs_diff(*b) as u64).sum::<u64>();
            }
        }
        let share = |part: usize, all: usize| part as f64 / all as f64;
        Measures {
            changed: share(failing, changed.iter().filter(|c| **c).count()),
            picture: share(failing, changed.len()),
            outside: share(failing_beyond, beyond.max(1)),
            mean: levels as f64 / (3 * beyond.max(1)) as f64,
        }
    }

    /// Whether the edit is right.
    pub fn right(&self) -> bool {
        self.changed <= CHANGED_MOST
            && self.picture <= PICTURE_MOST
            && self.outside <= OUTSIDE_MOST
            && self.mean <= OUTSIDE_MEAN_MOST
    }
}

/// Whether some pixel of two pictures of one size is in the changed region.
pub fn differ(source: &Rgb, target: &Rgb) -> bool {
    (0..source.width * source.height).any(|at| changes(source, target, at))
}

fn changes(source: &Rgb, target: &Rgb, at: usize) -> bool {
    difference(pixel(source, at), pixel(target, at)) > CHANGE
}

fn pixel(picture: &Rgb, at: usize) -> &[u8] {
    &picture.data[3 * at..3 * at + 3]
}

/// Largest difference of a channel.
fn difference(a: &[u8], b: &[u8]) -> u8 {
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

/// Numbers of the pixels at most `reach` columns and rows away.
fn near(x: usize, y: usize, reach: usize, width: usize, height: usize) -> impl Iterator<Item = usize> {
    let columns = x.saturating_sub(reach)..(x + reach + 1).min(width);
    let rows = y.saturating_sub(reach)..(y + reach + 1).min(height);
    rows.flat_map(move |y| columns.clone().map(move |x| y * width + x))
}

/// Whether a pixel of `b` within one of (x, y) is like that of `a` there, or a colour between such pixels.
fn matches(a: &Rgb, b: &Rgb, x: usize, y: usize, edges: Edges) -> bool {
    let own = pixel(a, y * a.width + x);
    let mut around = near(x, y, 1, a.width, a.height).map(|at| pixel(b, at));
    match edges {
        Edges::Same => around.any(|other| difference(own, other) <= TOLERANCE),
        Edges::Any => {
            let (mut least, mut largest) = ([255; 3], [0; 3]);
            for other in around {
                for channel in 0..3 {
                    least[channel] = least[channel].min(other[channel]);
                    largest[channel] = largest[channel].max(other[channel]);
                }
            }
            (0..3).all(|c| least[c].saturating_sub(TOLERANCE) <= own[c] && own[c] <= largest[c].saturating_add(TOLERANCE))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize, value: impl Fn(usize, usize, usize) -> usize) -> Rgb {
        let values = (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| (x, y, c))));
        Rgb { width, height, data: values.map(|(x, y, c)| value(x, y, c) as u8).collect() }
    }

    /// A square of one colour on another.
    fn square(left: usize, side: usize, colour: [u8; 3]) -> Rgb {
        let inside = move |x, y| (left..left + side).contains(&x) && (10..10 + side).contains(&y);
        picture(40, 32, move |x, y, c| if inside(x, y) { colour[c] as usize } else { 200 })
    }

    #[test]
    fn the_target_is_right_and_the_source_is_not() {
        let (source, target) = (square(8, 12, [220, 40, 40]), square(8, 12, [40, 60, 220]));
        let same = Measures::of(&source, &target, &target, Edges::Same);
        assert_eq!(same, Measures { changed: 0.0, picture: 0.0, outside: 0.0, mean: 0.0 });
        assert!(same.right());
        let unedited = Measures::of(&source, &target, &source, Edges::Same);
        assert!(!unedited.right() && unedited.changed == 1.0 && unedited.outside == 0.0, "{unedited:?}");
    }

    #[test]
    fn shapes_may_be_off_by_a_pixel_and_colours_by_the_tolerance() {
        let (source, target) = (square(8, 12, [220, 40, 40]), square(8, 12, [40, 60, 180]));
        let right = |edited: &Rgb| Measures::of(&source, &target, edited, Edges::Same).right();
        assert!(right(&square(9, 12, [40, 60, 180])) && !right(&square(11, 12, [40, 60, 180])));
        assert!(right(&square(8, 12, [40, 60, 180 + TOLERANCE])) && !right(&square(8, 12, [40, 60, 181 + TOLERANCE])));
    }

    #[test]
    fn what_should_stay_must_stay() {
        let (source, target) = (square(8, 12, [220, 40, 40]), square(8, 12, [40, 60, 220]));
        let changed_by = |levels: usize| {
            let mut edited = target.clone();
            edited.data.iter_mut().skip(3 * 40 * 26).for_each(|v| *v = (*v as usize - levels) as u8);
            Measures::of(&source, &target, &edited, Edges::Same)
        };
        assert!(changed_by(20).right(), "a sixth of the picture, a little darker");
        assert!(!changed_by(40).right() && changed_by(40).mean > OUTSIDE_MEAN_MOST && changed_by(40).outside == 0.0);
        assert!(!changed_by(60).right() && changed_by(60).outside > OUTSIDE_MOST);
    }

    #[test]
    fn where_any_edges_are_right_colours_between_match_and_others_do_not() {
        let (source, target) = (square(8, 12, [220, 40, 40]), square(8, 12, [40, 60, 220]));
        // Half way to the background all around the square: [120, 130, 210].
        let soft = |wide: usize, colour: [u8; 3]| {
            let inside = move |x: usize, y: usize, grown: usize| {
                (8 - grown..20 + grown).contains(&x) && (10 - grown..22 + grown).contains(&y)
            };
            picture(40, 32, move |x, y, c| match (inside(x, y, 0), inside(x, y, wide)) {
                (true, _) => [40, 60, 220][c],
                (_, true) => colour[c] as usize,
                _ => 200,
            })
        };
        let right = |edited: &Rgb, edges| Measures::of(&source, &target, edited, edges).right();
        assert!(right(&soft(1, [120, 130, 210]), Edges::Any) && !right(&soft(1, [120, 130, 210]), Edges::Same));
        assert!(!right(&soft(1, [120, 0, 210]), Edges::Any), "no colour between");
        assert!(!right(&soft(2, [120, 130, 210]), Edges::Any), "no edge there");
        assert!(!right(&source, Edges::Any) && right(&target, Edges::Any));
    }

    /// What `tools/demo_model/judge.py`, another implementation of the rule, measures.
    #[test]
    fn another_implementation_measures_the_same() {
        let source = picture(24, 20, |x, y, c| 7 * x + 5 * y + 40 * c);
        let target = picture(24, 20, |x, y, c| 7 * x + 5 * y + 40 * c + if x * y % 7 == 3 && x > 12 { 90 } else { 0 });
        for (noise, [changed, picture_share, outside, mean]) in [
            (30, [1.7307693, 0.0937500, 0.0049505, 14.6023092]),
            (60, [6.8076925, 0.3687500, 0.1435644, 31.5858097]),
            (100, [11.0384617, 0.5979167, 0.5396039, 55.4339905]),
            (140, [12.6153851, 0.6833333, 0.6683168, 73.9488449]),
        ] {
            let edited =
                picture(24, 20, |x, y, c| target.data[3 * (24 * y + x) + c] as usize + (x * 31 + y * 17 + c * 5) % noise);
            let found = Measures::of(&source, &target, &edited, Edges::Same);
            let expected = Measures { changed, picture: picture_share, outside, mean };
            let close = |a: f64, b: f64| (a - b).abs() < 1e-5 * b.max(1.0);
            assert!(
                close(found.changed, changed)
                    && close(found.picture, picture_share)
                    && close(found.outside, outside)
                    && close(found.mean, mean),
                "{found:?} instead of {expected:?}"
            );
        }
    }
}
