//! A profile as tables and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::roofline::{Bound, Rates, Sum, Timed, grouped};

/// Groups of nodes that are shown as gaps.
const GAPS: usize = 10;

/// What was measured of an edit's stages.
pub(super) struct Profile {
    pub(super) device: String,
    pub(super) size: [usize; 2],
    /// Rows of the transformer in a step.
    pub(super) rows: usize,
    pub(super) rates: Rates,
    pub(super) stages: Vec<Stage>,
}

/// What was measured of a stage.
pub(super) struct Stage {
    pub(super) name: &'static str,
    /// Its nodes, each with an event before and after it.
    pub(super) nodes: Vec<Timed>,
    /// All nodes enqueued with nothing between them.
    pub(super) uncaptured_ms: f64,
    /// One replay of the captured graph.
    pub(super) captured_ms: f64,
}

impl Profile {
    /// Width and height.
    pub(super) fn size_text(&self) -> String {
        format!("{}x{}", self.size[0], self.size[1])
    }

    /// As tables: for each stage its nodes, its kinds of op, its worst gaps and what it takes as a whole.
    pub(super) fn text(&self) -> String {
        let Rates { copy_gb_per_s, bf16_tflops, tf32_tflops, .. } = self.rates;
        let mut text = format!(
            "{} {}, {} rows a step\nceilings: copy {copy_gb_per_s:.0} GB/s read and written, products {bf16_tflops:.0} TFLOP/s in bf16, \
             {tf32_tflops:.0} in TF32\n",
            self.device,
            self.size_text(),
            self.rows
        );
        self.stages.iter().for_each(|stage| stage.print(&self.rates, &mut text));
        text
    }

    /// As one object.
    pub(super) fn json(&self) -> Value {
        let Rates { copy_gb_per_s, bf16_tflops, tf32_tflops, .. } = self.rates;
        let stages = self.stages.iter().map(|stage| (stage.name.to_string(), stage.json(&self.rates)));
        json!({
            "device": self.device, "size": self.size, "rows": self.rows,
            "ceilings": {"copy_gb_per_s": copy_gb_per_s, "bf16_tflops": bf16_tflops, "tf32_tflops": tf32_tflops},
            "stages": stages.collect::<serde_json::Map<String, Value>>(),
        })
    }
}

impl Stage {
    fn nodes_ms(&self) -> f64 {
        self.nodes.iter().map(|node| node.ms).sum()
    }

    /// Groups of equal kernels on equal shapes, those with most time above the roofline first.
    fn gaps(&self, rates: &Rates) -> Vec<(String, Sum)> {
        let mut groups = grouped(&self.nodes, rates, Timed::group);
        groups.retain(|(_, sum)| sum.lost_ms() > 0.0);
        groups.sort_by(|a, b| b.1.lost_ms().total_cmp(&a.1.lost_ms()));
        groups.truncate(GAPS);
        groups
    }

    fn print(&self, rates: &Rates, text: &mut String) {
        let all = self.nodes_ms();
        let head = |what: &str| {
            format!(
                "\n{:>10}{:>8}{:>9}{:>9}{:>10}{:>8}  {:<9}{what}\n",
                "ms", "share", "TFLOP/s", "GB/s", "roofline", "copy", "bound"
            )
        };
        let row = |sum: &Sum, what: &str| {
            let copy = match sum.bound() {
                Bound::Compute => "-".to_string(),
                Bound::Memory | Bound::Launch => format!("{:.0}%", 100.0 * sum.of_copy()),
            };
            format!(
                "{:>10.4}{:>7.2}%{:>9.1}{:>9.0}{:>9.1}%{copy:>8}  {:<9}{what}\n",
                sum.ms,
                percent(sum.ms, all),
                sum.tflops(),
                sum.gb_per_s(),
                100.0 * sum.of_roofline(),
                sum.bound().name()
            )
        };
        *text += &head(&format!("{}, node by node", self.name));
        for node in &self.nodes {
            *text += &row(&Sum::of([node], rates), &format!("{}: {}", node.name, node.group()));
        }
        *text += &head(&format!("{}, by kind", self.name));
        for (kind, sum) in grouped(&self.nodes, rates, |node| node.kind) {
            *text += &row(&sum, &format!("{} x {kind}", sum.count));
        }
        let gaps = self.gaps(rates);
        let _ =
            writeln!(text, "\n{}: the {} worst gaps, in ms above the roofline, and what would close each", self.name, gaps.len());
        for (what, sum) in gaps {
            let _ = writeln!(
                text,
                "{:>10.4}{:>7.2}%  {} x {what}\n{:>20}{}",
                sum.lost_ms(),
                percent(sum.lost_ms(), all),
                sum.count,
                "",
                sum.remedy()
            );
        }
        let _ = writeln!(
            text,
            "\n{}: {all:.3} ms sum of nodes ({:+.2} % of uncaptured), {:.3} ms uncaptured, {:.3} ms captured ({:+.2} %)",
            self.name,
            percent(all, self.uncaptured_ms) - 100.0,
            self.uncaptured_ms,
            self.captured_ms,
            percent(self.captured_ms, self.uncaptured_ms) - 100.0
        );
    }

    fn json(&self, rates: &Rates) -> Value {
        let all = self.nodes_ms();
        let with = |mut row: Value, sum: &Sum| {
            let numbers = json!({
                "ms": sum.ms, "share": percent(sum.ms, all) / 100.0, "tflops": sum.tflops(), "gb_per_s": sum.gb_per_s(),
                "roofline": sum.of_roofline(), "copy": sum.of_copy(), "bound": sum.bound().name(),
            });
            if let (Some(row), Value::Object(numbers)) = (row.as_object_mut(), numbers) {
                row.extend(numbers);
            }
            row
        };
        let node = |node: &Timed| {
            let named = json!({"name": node.name, "kind": node.kind, "kernel": node.kernel, "shapes": node.shapes});
            with(named, &Sum::of([node], rates))
        };
        let kinds = grouped(&self.nodes, rates, |node| node.kind);
        let kind = |(kind, sum): &(&str, Sum)| with(json!({"kind": kind, "count": sum.count}), sum);
        let gap = |(what, sum): &(String, Sum)| {
            with(json!({"what": what, "count": sum.count, "lost_ms": sum.lost_ms(), "remedy": sum.remedy()}), sum)
        };
        json!({
            "nodes_ms": all, "uncaptured_ms": self.uncaptured_ms, "captured_ms": self.captured_ms,
            "kinds": kinds.iter().map(kind).collect::<Vec<_>>(), "gaps": self.gaps(rates).iter().map(gap).collect::<Vec<_>>(),
            "nodes": self.nodes.iter().map(node).collect::<Vec<_>>(),
        })
    }
}

/// Hundredths of `all`; none of nothing.
fn percent(part: f64, all: f64) -> f64 {
    if all > 0.0 { 100.0 * part / all } else { 0.0 }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::roofline::tests::{rates, timed};
    use super::*;

    /// Two stages of made-up times.
    pub(in super::super) fn profile() -> Profile {
        let step = vec![
            timed("blocks.0.attention", "attention", 400_000_000_000, 1_000_000_000, 8.0),
            timed("odd \"name\"\\\u{1}", "add", 1_000, 2_000_000_000, 2.0),
            timed("blocks.1.attention", "attention", 400_000_000_000, 1_000_000_000, 8.0),
            timed("counter", "step_slice", 0, 64, 0.0),
        ];
        let decode = vec![timed("conv_in", "conv2d", 100_000_000_000, 1_000_000, 1.25)];
        let rates = rates(&[step.clone(), decode.clone()].concat());
        let stages = vec![
            Stage { name: "step", nodes: step, uncaptured_ms: 17.9, captured_ms: 17.5 },
            Stage { name: "vae_decode", nodes: decode, uncaptured_ms: 1.2, captured_ms: 1.2 },
        ];
        Profile { device: "cuda:0 Made-up".into(), size: [64, 48], rows: 12, rates, stages }
    }

    #[test]
    fn tables_name_every_node_and_the_gaps() {
        let text = profile().text();
        for words in [
            "copy 1000 GB/s",
            "100 TFLOP/s in bf16, 50 in TF32",
            "8.0000  44.44%     50.0      125     50.0%       -  compute  blocks.0.attention: attention VECTOR=8 bf16[4, 4]",
            "16.0000  88.89%",
            "2.0000  11.11%      0.0     1000    100.0%    100%  memory   odd",
            "2 x attention\n",
            "8.0000  44.44%  2 x attention VECTOR=8 bf16[4, 4]\n",
            "a faster kernel: 50 of 100 TFLOP/s",
            "18.000 ms sum of nodes (+0.56 % of uncaptured), 17.900 ms uncaptured, 17.500 ms captured (-2.23 %)",
            "vae_decode, node by node",
        ] {
            assert!(text.contains(words), "no {words:?} in:\n{text}");
        }
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }

    #[test]
    fn json_has_the_same_numbers() {
        let json = profile().json();
        let step = &json["stages"]["step"];
        assert_eq!((&step["nodes_ms"], &step["uncaptured_ms"]), (&json!(18.0), &json!(17.9)));
        assert_eq!(step["nodes"].as_array().unwrap().len(), 4);
        assert_eq!((&step["kinds"][0]["kind"], &step["kinds"][0]["roofline"]), (&json!("attention"), &json!(0.5)));
        assert_eq!((&step["gaps"][0]["lost_ms"], &step["gaps"][0]["bound"]), (&json!(8.0), &json!("compute")));
        assert_eq!(json["ceilings"]["tf32_tflops"], 50.0);
    }
}
