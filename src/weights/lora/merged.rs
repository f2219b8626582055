//! Weights with LoRA files merged: a recipe for each that changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::modules::Modules;
use super::{Change, Lora, Matched};
use crate::tensor::{Component, DType, Shape};
use crate::weights::Result;
use crate::weights::recipe::{Pair, PlusLora, Product, Recipe, Rows};

/// What some LoRA files make of a transformer.
#[derive(Debug, Default)]
pub(in crate::weights) struct Merged {
    /// The files, in the order in which the user names them.
    pub loras: Vec<Arc<Lora>>,
    /// The weights that change, by canonical name.
    recipes: BTreeMap<String, Recipe>,
    /// The numbers of the files that change each.
    by: BTreeMap<String, Vec<usize>>,
}

impl Merged {
    /// Merges files into weights, by canonical name.
    ///
    /// # Errors
    /// A file that is not for these weights.
    pub fn new(base: &BTreeMap<String, Recipe>, loras: Vec<Arc<Lora>>) -> Result<Merged> {
        let modules = Modules::new(base.iter().map(|(name, recipe)| (name.as_str(), &recipe.spec().shape)));
        let shape_of = |name: &str| base.get(name).map(|recipe| recipe.spec().shape.clone());
        let mut changes: BTreeMap<String, Vec<Matched>> = BTreeMap::new();
        let mut by: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (number, lora) in loras.iter().enumerate() {
            for matched in lora.matched(&modules, &shape_of)? {
                by.entry(matched.target.weight.clone()).or_default().push(number);
                changes.entry(matched.target.weight.clone()).or_default().push(matched);
            }
        }
        let merged = |(name, changes): (String, Vec<Matched>)| match base.get(&name) {
            Some(base) => Ok(Some((name, merge(base, changes)?))),
            None => Ok(None),
        };
        let recipes = changes.into_iter().filter_map(|entry| merged(entry).transpose()).collect::<Result<_>>()?;
        Ok(Merged { loras, recipes, by })
    }

    /// How a weight comes to be that they change.
    pub fn recipe(&self, component: Component, name: &str) -> Option<&Recipe> {
        if component == Component::Dit { self.recipes.get(name) } else { None }
    }

    /// The weights that have other values here than there.
    pub fn differing(&self, other: &Merged) -> BTreeSet<String> {
        let same = |name: &String| match (self.by.get(name), other.by.get(name)) {
            (Some(own), Some(others)) => {
                let pairs = own.iter().zip(others).map(|(&own, &other_)| (&self.loras[own], &other.loras[other_]));
                own.len() == others.len() && pairs.into_iter().all(|(own, other)| Arc::ptr_eq(own, other))
            }
            _ => false,
        };
        self.by.keys().chain(other.by.keys()).filter(|name| !same(name)).cloned().collect()
    }
}

/// A weight with its changes, rounded once: to its own type, or to bf16 where that has eight bits.
fn merge(base: &Recipe, changes: Vec<Matched>) -> Result<Recipe> {
    let dtype = if base.spec().dtype.is_fp8() { DType::BF16 } else { base.spec().dtype };
    let (mut plain, mut swapped) = (vec![], vec![]);
    for Matched { target, change } in changes {
        match (target.swapped, change) {
            (false, change) => plain.push(of(change, base)),
            (true, Change { product: Product::LowRank(Pair { up, down }), magnitudes: None, rows, scale, strength }) => {
                let product = Product::LowRank(Pair { up: halves_swapped(up)?, down });
                plain.push(Change { rows, product, scale, strength, magnitudes: None });
            }
            (true, change) => swapped.push(of(change, &halves_swapped(base.clone())?)),
        }
    }
    let mut sum = base.clone();
    if !swapped.is_empty() {
        // In the order of the file, and back.
        let inner = PlusLora::new(halves_swapped(sum)?, swapped, DType::F32)?;
        sum = halves_swapped(Recipe::PlusLora(inner))?;
    }
    Ok(Recipe::PlusLora(PlusLora::new(sum, plain, dtype)?))
}

/// A change whose magnitudes are of the weight as the model has it, whatever other files add.
fn of(change: Change, base: &Recipe) -> Change {
    Change { magnitudes: change.magnitudes.map(|magnitudes| magnitudes.of(base.clone())), ..change }
}

fn halves_swapped(recipe: Recipe) -> Result<Recipe> {
    let Shape(extents) = &recipe.spec().shape;
    let rows = extents.first().copied().unwrap_or(0);
    Ok(Recipe::Rows(Rows::new([(recipe.clone(), rows / 2..rows), (recipe, 0..rows / 2)])?))
}
