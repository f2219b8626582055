//! Which cases of which op run.

use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};

use super::OpJob;
use crate::error::usage;
use crate::ops::{Case, cases};
use crate::tensor::{Shape, Spec};

/// A case with its number among those of its op, from 1 on.
pub(super) struct Numbered {
    pub(super) number: usize,
    pub(super) case: Case,
}

impl Numbered {
    /// Attributes, operands and results.
    pub(super) fn text(&self) -> String {
        let specs = |specs: &[Spec]| specs.iter().map(Spec::to_string).collect::<Vec<_>>().join(" ");
        let attributes = match self.case.op.attributes() {
            none if none.is_empty() => none,
            some => format!("({some}) "),
        };
        let results = self.case.results().unwrap_or_default();
        format!("{attributes}{} -> {}", specs(&self.case.inputs), specs(&results))
    }
}

/// The cases that a job asks for, with its shapes.
///
/// # Errors
/// A usage error.
pub(super) fn choose(job: &OpJob) -> Result<Vec<Numbered>> {
    let chosen = numbered(job.name.as_deref()).and_then(|all| picked(all, job)).and_then(|picked| reshaped(picked, job));
    chosen.map_err(usage)
}

/// Every case of an op, or of all, with its number.
fn numbered(name: Option<&str>) -> Result<Vec<Numbered>> {
    let mut all: Vec<Numbered> = Vec::new();
    for case in cases() {
        let before = all.iter().filter(|n| n.case.op.kind() == case.op.kind()).count();
        all.push(Numbered { number: before + 1, case });
    }
    all.sort_by_key(|n| n.case.op.kind());
    if let Some(name) = name {
        let mut known: Vec<&str> = all.iter().map(|n| n.case.op.kind()).collect();
        known.dedup();
        ensure!(known.contains(&name), "there is no op {name}; the ops are {}", known.join(", "));
        all.retain(|n| n.case.op.kind() == name);
    }
    Ok(all)
}

fn picked(all: Vec<Numbered>, job: &OpJob) -> Result<Vec<Numbered>> {
    let Some(wanted) = &job.case else { return Ok(all) };
    let count = all.len();
    let fits = |n: &Numbered| match wanted.parse::<usize>() {
        Ok(number) => n.number == number,
        Err(_) => n.text().contains(wanted.as_str()),
    };
    let picked: Vec<Numbered> = all.into_iter().filter(fits).collect();
    ensure!(!picked.is_empty(), "--case {wanted}: none of {count} cases has this number or text; --list shows them");
    Ok(picked)
}

/// With shapes: the first case with as many operands, and these extents.
fn reshaped(mut picked: Vec<Numbered>, job: &OpJob) -> Result<Vec<Numbered>> {
    let count = job.shapes.len();
    if count == 0 {
        return Ok(picked);
    }
    let first = picked.iter().position(|n| n.case.inputs.len() == count);
    let first = first.ok_or_else(|| anyhow!("--shape gives {count} operands; no case that was picked has so many"))?;
    let mut one = picked.swap_remove(first);
    let fewer = job.shapes[0].rows() < one.case.inputs[0].shape.rows();
    ensure!(!(fewer && one.case.index_bound > 1), "--shape gives the first operand fewer rows than the case's indices reach");
    let elements = |shape: &Shape| shape.0.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    let countable = job.shapes.iter().all(|shape| elements(shape).is_some_and(|n| n <= u32::MAX.into()));
    ensure!(countable, "--shape gives an operand 2^32 elements or more; the kernels count them in 32 bits");
    one.case.inputs.iter_mut().zip(&job.shapes).for_each(|(spec, shape)| spec.shape = shape.clone());
    one.case.results().map_err(|e| anyhow!("{} does not take these shapes: {e}", one.case.op.kind()))?;
    Ok(vec![one])
}

/// A line for each case, below its op's name.
pub(super) fn list(all: &[Numbered]) -> String {
    let (mut text, mut op) = (String::new(), "");
    for numbered in all {
        let kind = numbered.case.op.kind();
        if kind != op {
            text += &format!("{kind}\n");
            op = kind;
        }
        let timed = if numbered.case.timed { "timed" } else { "" };
        text += &format!("{:>4} {timed:<5}  {}\n", numbered.number, numbered.text());
    }
    text
}

/// The same as JSON.
pub(super) fn list_json(all: &[Numbered]) -> Value {
    let case = |n: &Numbered| {
        json!({
            "op": n.case.op.kind(), "case": n.number, "timed": n.case.timed, "text": n.text(),
            "bound": n.case.bound, "reason": n.case.reason,
        })
    };
    all.iter().map(case).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::PlaceChoice;

    fn job(name: &str, case: Option<&str>, shapes: &[&[usize]]) -> OpJob {
        let shapes = shapes.iter().map(|shape| Shape(shape.to_vec())).collect();
        OpJob {
            name: Some(name.into()),
            case: case.map(Into::into),
            shapes,
            list: false,
            place: PlaceChoice::default(),
            json: false,
        }
    }

    fn refusal(job: &OpJob) -> String {
        choose(job).err().expect("a usage error").to_string()
    }

    #[test]
    fn cases_are_picked_by_number_and_by_text() {
        let all = choose(&job("linear", None, &[])).unwrap();
        assert!(all.len() > 2 && all.iter().enumerate().all(|(i, n)| n.number == i + 1));
        assert_eq!(choose(&job("linear", Some("2"), &[])).unwrap()[0].number, 2);
        let gelu = choose(&job("linear", Some("gelu"), &[])).unwrap();
        assert!(!gelu.is_empty() && gelu.len() < all.len() && gelu.iter().all(|n| n.text().contains("gelu_tanh")));
        assert!(refusal(&job("linear", Some("99"), &[])).contains("--list"));
        assert!(refusal(&job("lineal", None, &[])).contains("linear"));
    }

    #[test]
    fn shapes_replace_those_of_a_case_with_as_many_operands() {
        let chosen = choose(&job("linear", None, &[&[4096, 64], &[128, 64], &[128]])).unwrap();
        assert_eq!(chosen.len(), 1);
        assert_eq!(chosen[0].text(), "bf16[4096, 64] bf16[128, 64] bf16[128] -> bf16[4096, 128]");
        assert!(refusal(&job("linear", None, &[&[4096, 64], &[128, 63], &[128]])).contains("does not fit rows"));
        assert!(refusal(&job("linear", None, &[&[4, 4]])).contains("--shape gives 1 operands"));
    }

    #[test]
    fn the_list_names_every_op_and_says_what_is_timed() {
        let text = list(&numbered(None).unwrap());
        for words in ["\nlinear\n", "\nattention\n", "\n   1        ", " timed  ", "(gelu_tanh) bf16["] {
            assert!(text.contains(words), "no {words:?} in:\n{text}");
        }
    }
}
