//! From the names that files have, those of diffusers and of llama.cpp, to the canonical ones, which are those of the official
//! release.
//!
//! Every name says by itself what it is, so files of any layout may stand in any place, and a file may mix them. What the
//! table does not know keeps its name, and whoever compares a model with what is needed tells of it.

mod scales;
mod table;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::file::WeightFile;
use super::heads::{bare, head};
use super::recipe::{Packed, Recipe, Rows, Stored};
use super::words::{listed, shown};
use super::write::{Excerpt, PlannedTensor};
use super::{ModelError, Result};
use crate::tensor::{Component, Spec};

use self::scales::Scales;
use self::table::{LAST_LEVEL, rows};

/// The tensor whose rows are the transformer's width.
const WIDTH: &str = "img_in.weight";

/// How diffusers, or llama.cpp, has a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// Under another name.
    Whole,
    /// As several, which are its rows one below the other: q, k and v of the transformer's width, then an MLP's.
    Stacked,
    /// With its second half of rows before the first.
    Swapped,
    /// A convolution of 1×1 as a matrix.
    Matrix,
    /// A convolution over two pictures as two of one, that of the second first.
    Pictures,
}

/// A name of a file, in canonical terms.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Canonical {
    name: String,
    how: Move,
    /// Which of how many tensors this is that make the canonical one.
    part: (usize, usize),
}

/// The recipe of every tensor of a component's files, by canonical name.
///
/// # Errors
/// Two names of one tensor, a tensor of which a part is missing, or parts that do not fit each other; with file and names.
pub(super) fn recipes(component: Component, files: &[Arc<WeightFile>]) -> Result<BTreeMap<String, Recipe>> {
    let scales = Scales::new(files)?;
    let mut found: BTreeMap<String, Parts> = BTreeMap::new();
    for file in files {
        for (stored, _) in file.tensors().filter(|(name, _)| scales::is_weight(name)) {
            let Canonical { name, how, part: (k, of) } = canonical(component, stored);
            let parts = found.entry(name).or_insert_with(|| Parts { how, of: vec![None; of] });
            match parts.of.get_mut(k) {
                Some(place @ None) if parts.how == how => *place = Some((file, stored)),
                _ => {
                    let other = parts.of.iter().flatten().next_back().map_or("", |(_, name)| *name);
                    let (one, other) = (shown(stored), shown(other));
                    let fault = format!("{one} and {other} are two names of one tensor; the file must hold one of them");
                    return Err(ModelError::new(fault).at(file.path()));
                }
            }
        }
    }
    let missing: Vec<String> = found
        .iter()
        .flat_map(|(name, parts)| stored_names(component, name, parts.how).into_iter().zip(&parts.of))
        .filter(|(_, part)| part.is_none())
        .map(|(name, _)| shown(&name))
        .collect();
    if let (false, Some(file)) = (missing.is_empty(), files.first()) {
        let fault = format!("parts of its tensors are not there; fetch all files of one release{}", listed("missing", &missing));
        return Err(ModelError::new(fault).at(file.path()));
    }
    let recipes = found.into_iter().map(|(name, parts)| Ok((name, parts.recipe(&scales)?)));
    let recipes: BTreeMap<String, Recipe> = recipes.collect::<Result<_>>()?;
    check_stacks(component, &recipes)?;
    Ok(recipes)
}

/// What is found of one canonical tensor.
struct Parts<'a> {
    how: Move,
    of: Vec<Option<(&'a Arc<WeightFile>, &'a str)>>,
}

impl Parts<'_> {
    fn recipe(&self, scales: &Scales) -> Result<Recipe> {
        if self.how == Move::Stacked {
            let parts = self.of.iter().flatten().map(|(file, name)| weight(file, name, self.how, scales));
            return Ok(Recipe::Rows(Rows::of_all(parts.collect::<Result<Vec<_>>>()?)?));
        }
        if let (Move::Pictures, &[Some(second), Some(first)]) = (self.how, &self.of[..]) {
            let [first, second] = [first, second].map(|(file, name)| weight(file, name, self.how, scales));
            return over_two_pictures(first?, second?);
        }
        let (file, name) = self.of[0].expect("a whole tensor is there, since its name was found");
        let recipe = weight(file, name, self.how, scales)?;
        let rows = recipe.spec().shape.0.first().copied().unwrap_or(0);
        if self.how != Move::Swapped || !rows.is_multiple_of(2) {
            return Ok(recipe);
        }
        let [start, end] = [0..rows / 2, rows / 2..rows].map(|half| (recipe.clone(), half));
        Ok(Recipe::Rows(Rows::new([end, start])?))
    }
}

/// One tensor of a file, with its scale and as a convolution where it is one.
fn weight(file: &Arc<WeightFile>, name: &str, how: Move, scales: &Scales) -> Result<Recipe> {
    let mut stored = Stored::new(file, name)?.not_zero();
    if let (Move::Matrix, &[out, of]) = (how, &stored.spec().shape.0[..]) {
        stored = stored.reshaped([out, of, 1, 1])?;
    }
    if let Some(blocks) = file.blocks(name) {
        return Ok(Recipe::Packed(Packed::new(stored, blocks)?));
    }
    Ok(match scales.of(name, &stored)? {
        Some(scaled) => Recipe::Scaled(scaled),
        None => Recipe::Stored(stored),
    })
}

/// The convolution [O, C, 2, H, W] of two of [O, C, H, W]: in each channel of a filter, the one's and then the other's.
fn over_two_pictures(first: Recipe, second: Recipe) -> Result<Recipe> {
    let (&[filters, channels, height, width], same) = (&first.spec().shape.0[..], first.spec().shape == second.spec().shape)
    else {
        return Err(first.named(&format!("it is {}, which is no convolution", first.spec())));
    };
    if !same {
        return Err(second.named(&format!("it is {}, and the other picture's is {}", second.spec(), first.spec())));
    }
    let [first, second] = [first, second].map(|picture| picture.reshaped([filters * channels, height, width]));
    let (first, second) = (first?, second?);
    let rows = (0..filters * channels).flat_map(|row| [(first.clone(), row..row + 1), (second.clone(), row..row + 1)]);
    Ok(Recipe::Rows(Rows::new(rows)?.reshaped([filters, channels, 2, height, width])?))
}

/// q, k and v must have as many rows as the transformer is wide: a sum of other numbers could be right.
fn check_stacks(component: Component, recipes: &BTreeMap<String, Recipe>) -> Result<()> {
    let first_extent = |recipe: &Recipe| recipe.spec().shape.0.first().copied();
    for (name, recipe) in recipes {
        let Recipe::Rows(stack) = recipe else { continue };
        if moved(component, name).is_none_or(|(_, how)| how != Move::Stacked) {
            continue;
        }
        // Of the vision tower, q says it.
        let (of, width) = match component {
            Component::Qwen => ("attn_q", stack.tensors().next()),
            _ => ("x_embedder.weight", recipes.get(WIDTH)),
        };
        let Some(width) = width.and_then(first_extent) else { continue };
        for part in stack.tensors().take(3) {
            let rows = part.spec().shape.0[0];
            if rows != width {
                return Err(part.named(&format!("it has {rows} rows, but {of} has {width}; take both from one release")));
            }
        }
    }
    Ok(())
}

/// Tensors of the official layout as the diffusers layout has them: the same values in other places.
///
/// `hidden` is the transformer's width.
pub fn to_diffusers(component: Component, tensors: &[PlannedTensor], hidden: usize) -> Vec<PlannedTensor> {
    tensors.iter().flat_map(|tensor| tensor_to_diffusers(component, tensor, hidden)).collect()
}

fn tensor_to_diffusers(component: Component, tensor: &PlannedTensor, hidden: usize) -> Vec<PlannedTensor> {
    // Other names of the text encoder are those of llama.cpp.
    let moved = if component == Component::Qwen { None } else { moved(component, &tensor.name) };
    let Some((names, how)) = moved else { return vec![tensor.clone()] };
    let Spec { dtype, shape } = &tensor.spec;
    let all = shape.0.first().copied().unwrap_or(1);
    let excerpt = |name: String, rows: Vec<Range<usize>>| {
        let mut own = shape.clone();
        if let Some(first) = own.0.first_mut() {
            *first = rows.iter().map(Range::len).sum();
        }
        if how == Move::Matrix && own.0.len() == 4 {
            own.0.truncate(2);
        }
        let of = Some(Excerpt { name: tensor.name.clone(), shape: shape.clone(), rows });
        PlannedTensor { name, spec: Spec { dtype: *dtype, shape: own }, of }
    };
    let count = names.len();
    let each = names.into_iter().enumerate().map(|(i, name)| match how {
        Move::Stacked => excerpt(name, vec![stacked_rows((i, count), hidden, all)]),
        Move::Swapped => excerpt(name, vec![all / 2..all, 0..all / 2]),
        Move::Whole | Move::Matrix | Move::Pictures => excerpt(name, vec![0..all]),
    });
    each.collect()
}

/// Rows of one of several tensors that are stacked to `all`: those but the last have `hidden`.
fn stacked_rows((part, of): (usize, usize), hidden: usize, all: usize) -> Range<usize> {
    part * hidden..if part + 1 == of { all } else { (part + 1) * hidden }
}

/// The modules that diffusers makes of a canonical one of the transformer, whose weight is [rows, columns]: their names, their rows of it,
/// and whether these have their halves the other way round.
pub(super) fn modules_of_diffusers(module: &str, rows: usize, columns: usize) -> Vec<(String, Range<usize>, bool)> {
    let Some((names, how)) = moved(Component::Dit, module) else { return Vec::new() };
    let count = names.len();
    let rows_of = |part| if how == Move::Stacked { stacked_rows((part, count), columns, rows) } else { 0..rows };
    names.into_iter().enumerate().map(|(part, name)| (name, rows_of(part), how == Move::Swapped)).collect()
}

/// How the files of a component name its tensors.
#[derive(Clone, Debug, Default)]
pub(super) struct Spelling {
    /// What is before each name.
    head: String,
    /// Whether the names are those of diffusers.
    moved: bool,
}

impl Spelling {
    pub fn of(component: Component, files: &[Arc<WeightFile>]) -> Spelling {
        let names = || files.iter().flat_map(|file| file.tensors()).map(|(name, _)| name);
        Spelling {
            head: names().map(|name| head(component, name)).find(|head| !head.is_empty()).unwrap_or_default().to_string(),
            moved: names().any(|name| of_diffusers(component, bare(component, name)).is_some()),
        }
    }

    /// The tensor of a canonical name as messages show it.
    pub fn shown(&self, component: Component, name: &str) -> String {
        let own = |name: &String| format!("{}{}", shown(&self.head), shown(name));
        match moved(component, name).filter(|_| self.moved) {
            Some((names, how)) => {
                let names: Vec<String> = names.iter().map(own).collect();
                let of = if how == Move::Stacked { format!(", which are {}", shown(name)) } else { String::new() };
                names.join(", ") + &of
            }
            None => own(&name.to_string()),
        }
    }
}

/// The names that a tensor of this canonical name has where diffusers moves it as `how` says; else its own.
fn stored_names(component: Component, name: &str, how: Move) -> Vec<String> {
    match moved(component, name) {
        Some((names, moved)) if moved == how => names,
        _ => vec![name.to_string()],
    }
}

/// Names and order in which diffusers has the tensor of a canonical name, if it moves it.
fn moved(component: Component, name: &str) -> Option<(Vec<String>, Move)> {
    rows(component).iter().find_map(|row| {
        let names: Option<Vec<String>> = row.diffusers.iter().map(|pattern| rename(row.official, pattern, name)).collect();
        Some((names?, row.how))
    })
}

/// What a name in a file means.
fn canonical(component: Component, stored: &str) -> Canonical {
    let stored = bare(component, stored);
    let own = || if component == Component::Qwen { qwen_name(stored) } else { stored.to_string() };
    of_diffusers(component, stored).unwrap_or_else(|| Canonical { name: own(), how: Move::Whole, part: (0, 1) })
}

/// What a name means that only diffusers has.
fn of_diffusers(component: Component, stored: &str) -> Option<Canonical> {
    rows(component).iter().find_map(|row| {
        let mut names = row.diffusers.iter().map(|pattern| rename(pattern, row.official, stored)).enumerate();
        let (part, name) = names.find_map(|(part, name)| Some((part, name?)))?;
        Some(Canonical { name, how: row.how, part: (part, row.diffusers.len()) })
    })
}

/// A name of the pattern `from` under the pattern `to`; none if it is not of that pattern.
pub(super) fn rename(from: &str, to: &str, name: &str) -> Option<String> {
    let mut segments = name.split('.');
    let mut numbers = Vec::new();
    for wanted in from.split('.') {
        let segment = segments.next()?;
        match wanted {
            "*" => numbers.push(number(segment)?),
            "~" => numbers.push(LAST_LEVEL.checked_sub(number(segment)?)?),
            _ if wanted == segment => {}
            _ => return None,
        }
    }
    let mut numbers = numbers.into_iter();
    let mut renamed = Vec::new();
    for segment in to.split('.') {
        renamed.push(match segment {
            "*" => numbers.next()?.to_string(),
            "~" => LAST_LEVEL.checked_sub(numbers.next()?)?.to_string(),
            _ => segment.to_string(),
        });
    }
    renamed.extend(segments.map(str::to_string));
    Some(renamed.join("."))
}

/// A block's number as files write it: without zeros in front.
fn number(segment: &str) -> Option<usize> {
    segment.parse().ok().filter(|number: &usize| number.to_string() == segment)
}

/// Newer releases of transformers moved the vision tower and the text model below `model`.
fn qwen_name(stored: &str) -> String {
    if let Some(rest) = stored.strip_prefix("model.visual.") {
        format!("visual.{rest}")
    } else if let Some(rest) = stored.strip_prefix("model.language_model.") {
        format!("model.{rest}")
    } else {
        stored.to_string()
    }
}

#[cfg(test)]
mod tests;
