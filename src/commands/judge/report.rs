//! What `judge` prints: right edits, of all and by groups.

use serde_json::{Value, json};

use super::cases::Case;
use super::rule::Measures;

/// What a case's edit came to.
pub struct Judged {
    /// What was asked.
    pub case: Case,
    /// How far the result is from it.
    pub measures: Measures,
}

/// The group that a case belongs to, if the case says so.
type Group = fn(&Case) -> Option<&str>;

/// What cases are counted by.
const GROUPS: [(&str, Group); 4] = [
    ("kind", |case| Some(&case.kind)),
    ("language", |case| Some(&case.language)),
    ("wording", |case| Some(if case.held_out { "unseen" } else { "seen" })),
    ("size", |case| case.size.as_deref()),
];

/// The right ones and all of each group, in the order in which groups appear; nothing if some case belongs to none.
fn counts(judged: &[Judged], group: Group) -> Vec<(&str, usize, usize)> {
    let mut counts: Vec<(&str, usize, usize)> = Vec::new();
    for Judged { case, measures } in judged {
        let Some(name) = group(case) else { return vec![] };
        let at = counts.iter().position(|(known, ..)| *known == name).unwrap_or_else(|| {
            counts.push((name, 0, 0));
            counts.len() - 1
        });
        counts[at].1 += measures.right() as usize;
        counts[at].2 += 1;
    }
    counts
}

/// For a person: a line for all and for each group.
pub fn table(title: &str, judged: &[Judged]) -> String {
    let line = |name: &str, right: usize, all: usize| {
        format!("{name:<22}{right:>5} of {all:<5}{:>6.1} %\n", 100.0 * right as f64 / all as f64)
    };
    let right = judged.iter().filter(|j| j.measures.right()).count();
    let mut text = format!("{title}\n{}", line("all", right, judged.len()));
    for (group, of) in GROUPS {
        for (name, right, all) in counts(judged, of) {
            text += &line(&format!("{group} {name}"), right, all);
        }
    }
    text
}

/// For a program: the same, and every case's measures.
pub fn report(title: &str, judged: &[Judged]) -> Value {
    let each = judged.iter().map(|Judged { case, measures: m }| {
        let mut each = json!({
            "id": case.id, "kind": case.kind, "language": case.language, "held_out": case.held_out, "right": m.right(),
            "changed": m.changed, "picture": m.picture, "outside": m.outside, "mean": m.mean,
        });
        if let Some(size) = &case.size {
            each["size"] = json!(size);
        }
        each
    });
    let mut report = json!({
        "run": title, "cases": judged.len(), "right": judged.iter().filter(|j| j.measures.right()).count(),
        "each": each.collect::<Vec<_>>(),
    });
    for (group, of) in GROUPS {
        let shares: serde_json::Map<_, _> = counts(judged, of)
            .into_iter()
            .map(|(name, right, all)| (name.to_string(), json!({"right": right, "cases": all})))
            .collect();
        if !shares.is_empty() {
            report[group] = Value::Object(shares);
        }
    }
    report
}
