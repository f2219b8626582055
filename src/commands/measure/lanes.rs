//! A profile with weights that stream: what a turn of a stage computes, what it waits for and what is copied meanwhile. Pure: what
//! was measured goes in; tables, JSON and a trace come out.

use std::fmt::Write;
use std::ops::Range;

use serde_json::{Value, json};

use super::roofline::ratio;
use super::trace::{PROCESS, thread};
use crate::exec;
use crate::graph::BodyId;
use crate::plan::{Plan, format_bytes};

/// Waits that are shown.
const LONGEST: usize = 10;
/// Milliseconds from which on a wait counts as one by itself: marks that follow each other are some microseconds apart.
const SEEN: f64 = 0.01;

/// What was measured of an edit's stages while weights stream.
pub(super) struct Streamed {
    pub(super) device: String,
    pub(super) size: [usize; 2],
    /// Rows of the transformer in a step.
    pub(super) rows: usize,
    /// Bytes of the device's memory for activations and weights.
    pub(super) region_bytes: usize,
    /// Bytes of weights that stay in it.
    pub(super) kept_bytes: usize,
    /// Bytes of weights in page-locked memory of the host.
    pub(super) stored_bytes: usize,
    /// Of copies from page-locked memory, as measured.
    pub(super) link_gb_per_s: f64,
    pub(super) stages: Vec<Stage>,
}

/// What was measured of a turn of a stage. Times are milliseconds from its beginning.
pub(super) struct Stage {
    pub(super) name: &'static str,
    /// A turn with no marks in it.
    pub(super) turn_ms: f64,
    pub(super) spans: Vec<Span>,
    /// Those of which at least a part falls into the turn.
    pub(super) copies: Vec<Copied>,
    pub(super) planned: Planned,
}

/// Nodes that run together.
pub(super) struct Span {
    /// The first of them.
    pub(super) name: String,
    /// How many they are.
    pub(super) nodes: usize,
    pub(super) waits: f64,
    pub(super) begins: f64,
    pub(super) ends: f64,
}

/// A copy of a weight, or of a piece of it.
pub(super) struct Copied {
    pub(super) weight: String,
    pub(super) bytes: usize,
    pub(super) begins: f64,
    pub(super) ends: f64,
}

/// A turn as the plan predicts it.
pub(super) struct Planned {
    pub(super) ms: f64,
    pub(super) stalls_ms: f64,
    pub(super) bytes: f64,
}

impl Planned {
    /// For a link of so many GB/s.
    pub(super) fn of(plan: &Plan, body: BodyId, link: f64) -> Planned {
        let (passage, runs) = (plan.passages(link)[body.0], plan.itinerary.runs_of(body).max(1) as f64);
        let ms = |seconds: f64| 1e3 * seconds / runs;
        Planned { ms: ms(passage.seconds), stalls_ms: ms(passage.stalls), bytes: passage.bytes as f64 / runs }
    }
}

impl Span {
    fn stall(&self) -> f64 {
        self.begins - self.waits
    }
}

impl Copied {
    fn gb_per_s(&self) -> f64 {
        ratio(self.bytes as f64, self.ends - self.begins) / 1e6
    }
}

impl Stage {
    /// A run of a body, which has at least one span, with the copies of a whole run of the program.
    pub(super) fn of(
        plan: &Plan,
        body: BodyId,
        run: &[exec::Span],
        copies: &[exec::Copied],
        turn_ms: f64,
        planned: Planned,
    ) -> Stage {
        let (start, graph) = (run[0].waits, &plan.graph);
        let end = run[run.len() - 1].ends;
        let span = |span: &exec::Span| Span {
            name: graph.nodes[span.nodes.start].name.clone(),
            nodes: span.nodes.len(),
            waits: span.waits - start,
            begins: span.begins - start,
            ends: span.ends - start,
        };
        let copied = |copy: &exec::Copied| Copied {
            weight: graph.storages[copy.weight.0].name.clone(),
            bytes: copy.bytes,
            begins: copy.begins - start,
            ends: copy.ends - start,
        };
        let mut copies: Vec<Copied> = copies.iter().filter(|copy| copy.ends > start && copy.begins < end).map(copied).collect();
        copies.sort_by(|a, b| a.begins.total_cmp(&b.begins));
        Stage { name: graph.bodies[body.0].name, turn_ms, spans: run.iter().map(span).collect(), copies, planned }
    }

    /// From the first mark to the last.
    fn marked_ms(&self) -> f64 {
        self.spans.last().map_or(0.0, |span| span.ends)
    }

    fn nodes_ms(&self) -> f64 {
        self.spans.iter().map(|span| span.ends - span.begins).sum()
    }

    fn stalls_ms(&self) -> f64 {
        self.spans.iter().map(Span::stall).sum()
    }

    /// The part of a copy that falls into the turn.
    fn inside(&self, copy: &Copied) -> Range<f64> {
        copy.begins.max(0.0)..copy.ends.min(self.marked_ms())
    }

    /// Bytes that came in the turn: of a copy that falls into it in part, as large a part.
    fn bytes(&self) -> f64 {
        let share = |copy: &Copied| {
            let inside = self.inside(copy);
            match copy.ends > copy.begins {
                true => (inside.end - inside.start) / (copy.ends - copy.begins),
                false => 1.0,
            }
        };
        self.copies.iter().map(|copy| copy.bytes as f64 * share(copy)).sum()
    }

    /// Milliseconds of the turn in which at least one copy was under way.
    fn copying_ms(&self) -> f64 {
        let (mut all, mut until) = (0.0, 0.0f64);
        for copy in &self.copies {
            let Range { start, end } = self.inside(copy);
            all += (end - start.max(until)).max(0.0);
            until = until.max(end);
        }
        all
    }

    /// GB/s while something was copied, and over the turn.
    fn rates(&self) -> [f64; 2] {
        [self.copying_ms(), self.marked_ms()].map(|ms| ratio(self.bytes(), ms) / 1e6)
    }

    /// The waits that are more than the marks themselves, the longest first.
    fn waits(&self) -> Vec<&Span> {
        let mut waits: Vec<&Span> = self.spans.iter().filter(|span| span.stall() >= SEEN).collect();
        waits.sort_by(|a, b| b.stall().total_cmp(&a.stall()));
        waits.truncate(LONGEST);
        waits
    }

    fn print(&self, link: f64, text: &mut String) {
        let Planned { ms, stalls_ms, bytes } = self.planned;
        let [copying, over] = self.rates();
        let (bytes_text, planned_over) = (|bytes: f64| format_bytes(bytes.round() as usize), ratio(bytes, ms) / 1e6);
        let _ = writeln!(text, "\n{:<38}{:>14}{:>14}", format!("a turn of {}", self.name), "measured", "planned");
        let mut row = |what: &str, measured: String, planned: String| {
            let _ = writeln!(text, "{what:<38}{measured:>14}{planned:>14}");
        };
        let number = |number: f64, unit: &str| format!("{number:.3} {unit}");
        row("all of it", number(self.turn_ms, "ms"), number(ms, "ms"));
        row("nodes", number(self.nodes_ms(), "ms"), number(ms - stalls_ms, "ms"));
        row("waits for weights", number(self.stalls_ms(), "ms"), number(stalls_ms, "ms"));
        row("copied", bytes_text(self.bytes()), bytes_text(bytes));
        row("rate while copying", format!("{copying:.1} GB/s"), format!("{link:.1} GB/s"));
        row("rate over the turn", format!("{over:.1} GB/s"), format!("{planned_over:.1} GB/s"));
        let (nodes, marked) = (self.nodes_ms() + self.stalls_ms(), self.marked_ms());
        let _ = writeln!(
            text,
            "nodes and waits are {nodes:.3} ms of the {marked:.3} ms that a turn with marks takes ({:+.2} % of one without)",
            100.0 * ratio(marked, self.turn_ms) - 100.0
        );
        let waits = self.waits();
        let _ = writeln!(text, "\n{}: the {} longest waits for weights, in ms, each before", self.name, waits.len());
        for span in waits {
            let share = 100.0 * ratio(span.stall(), marked);
            let more = if span.nodes > 1 { format!(" and {} more nodes", span.nodes - 1) } else { String::new() };
            let _ = writeln!(text, "{:>10.4}{share:>7.2}%  {}{more}", span.stall(), span.name);
        }
    }

    fn json(&self) -> Value {
        let Planned { ms, stalls_ms, bytes } = self.planned;
        let [copying, over] = self.rates();
        let span = |span: &Span| {
            json!({
                "name": span.name, "nodes": span.nodes, "waits_ms": span.waits, "begins_ms": span.begins, "ends_ms": span.ends,
            })
        };
        let copy = |copy: &Copied| {
            json!({
                "weight": copy.weight, "bytes": copy.bytes, "begins_ms": copy.begins, "ends_ms": copy.ends,
                "gb_per_s": copy.gb_per_s(),
            })
        };
        let wait = |span: &&Span| json!({"before": span.name, "ms": span.stall()});
        json!({
            "turn_ms": self.turn_ms, "marked_ms": self.marked_ms(), "nodes_ms": self.nodes_ms(), "stalls_ms": self.stalls_ms(),
            "bytes": self.bytes().round() as u64, "copying_ms": self.copying_ms(), "gb_per_s_copying": copying, "gb_per_s": over,
            "planned": {"turn_ms": ms, "stalls_ms": stalls_ms, "bytes": bytes.round() as u64},
            "longest_stalls": self.waits().iter().map(wait).collect::<Vec<_>>(),
            "segments": self.spans.iter().map(span).collect::<Vec<_>>(),
            "copies": self.copies.iter().map(copy).collect::<Vec<_>>(),
        })
    }

    /// The stage's slices of a trace, which begin at `offset` milliseconds: computed things on the first track, copies on the others,
    /// as many as there are copies under way at once. Gives how many of these there are.
    fn slices(&self, offset: f64, events: &mut Vec<Value>) -> usize {
        let mut slice = |track: usize, name: &str, time: Range<f64>, args: Value| {
            events.push(json!({
                "ph": "X", "name": name, "cat": self.name, "pid": PROCESS, "tid": track + 1, "ts": 1e3 * (offset + time.start),
                "dur": 1e3 * (time.end - time.start), "args": args,
            }));
        };
        for span in &self.spans {
            if span.stall() >= SEEN {
                slice(0, "waits for weights", span.waits..span.begins, json!({"before": span.name}));
            }
            slice(0, &span.name, span.begins..span.ends, json!({"nodes": span.nodes}));
        }
        let mut busy: Vec<f64> = Vec::new();
        for copy in &self.copies {
            let time = self.inside(copy);
            let track = busy.iter().position(|until| *until <= time.start).unwrap_or(busy.len());
            busy.resize(busy.len().max(track + 1), 0.0);
            busy[track] = time.end;
            slice(track + 1, &copy.weight, time, json!({"bytes": copy.bytes, "gb_per_s": copy.gb_per_s()}));
        }
        busy.len()
    }
}

impl Streamed {
    fn size_text(&self) -> String {
        format!("{}x{}", self.size[0], self.size[1])
    }

    /// As tables: for each stage a turn beside the plan's, and its longest waits.
    pub(super) fn text(&self) -> String {
        let [region, kept, stored] = [self.region_bytes, self.kept_bytes, self.stored_bytes].map(format_bytes);
        let mut text = format!(
            "{} {}, {} rows a step\nweights stream: {region} for activations and weights, of which {kept} stay; the host keeps {stored} \
             ready, and the link carries {:.1} GB/s\n",
            self.device,
            self.size_text(),
            self.rows,
            self.link_gb_per_s
        );
        self.stages.iter().for_each(|stage| stage.print(self.link_gb_per_s, &mut text));
        text
    }

    /// As one object.
    pub(super) fn json(&self) -> Value {
        let stages = self.stages.iter().map(|stage| (stage.name.to_string(), stage.json()));
        json!({
            "device": self.device, "size": self.size, "rows": self.rows, "region_bytes": self.region_bytes,
            "kept_bytes": self.kept_bytes, "stored_bytes": self.stored_bytes, "link_gb_per_s": self.link_gb_per_s,
            "stages": stages.collect::<serde_json::Map<String, Value>>(),
        })
    }

    /// As a trace: a turn of each stage, one after another, on a track of what is computed and one of what is copied.
    pub(super) fn trace(&self) -> Value {
        let (mut slices, mut offset, mut tracks) = (Vec::new(), 0.0, 1);
        for stage in &self.stages {
            tracks = tracks.max(stage.slices(offset, &mut slices));
            offset += stage.marked_ms();
        }
        let title = format!("step1x-edit {} on {}, weights stream", self.size_text(), self.device);
        let mut events = vec![super::trace::name("process_name", 0, &title)];
        let copies = (1..=tracks).map(|n| if n == 1 { "copies".into() } else { format!("copies {n}") });
        for (number, track) in std::iter::once("compute".to_string()).chain(copies).enumerate() {
            events.extend(thread(number as u32 + 1, &track));
        }
        events.extend(slices);
        json!({"displayTimeUnit": "ms", "traceEvents": events})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(name: &str, nodes: usize, [waits, begins, ends]: [f64; 3]) -> Span {
        Span { name: name.into(), nodes, waits, begins, ends }
    }

    fn copied(weight: &str, bytes: usize, begins: f64, ends: f64) -> Copied {
        Copied { weight: weight.into(), bytes, begins, ends }
    }

    /// Two stages of made-up times: copies that come before the turn, side by side, and beyond its end.
    fn streamed() -> Streamed {
        let step = Stage {
            name: "step",
            turn_ms: 19.8,
            spans: vec![
                span("blocks.0.qkv", 12, [0.0, 0.002, 8.0]),
                span("blocks.1.qkv", 12, [8.0, 11.0, 15.0]),
                span("odd \"name\"", 1, [15.5, 16.5, 20.0]),
            ],
            copies: vec![
                copied("a.weight", 80_000_000, -1.0, 1.0),
                copied("b.weight", 300_000_000, 2.0, 11.0),
                copied("c.weight", 100_000_000, 9.0, 16.5),
                copied("d.weight", 60_000_000, 19.0, 22.0),
            ],
            planned: Planned { ms: 18.0, stalls_ms: 2.0, bytes: 460e6 },
        };
        let text = Stage {
            name: "text",
            turn_ms: 1.0,
            spans: vec![span("embed", 1, [0.0, 0.0, 1.0])],
            copies: vec![],
            planned: Planned { ms: 0.0, stalls_ms: 0.0, bytes: 0.0 },
        };
        Streamed {
            device: "cuda:0 Made-up".into(),
            size: [64, 48],
            rows: 12,
            region_bytes: 5_000_000_000,
            kept_bytes: 3_000_000_000,
            stored_bytes: 17_000_000_000,
            link_gb_per_s: 55.0,
            stages: vec![step, text],
        }
    }

    #[test]
    fn sums_are_those_of_the_turn_alone() {
        let streamed = streamed();
        let step = &streamed.stages[0];
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9 * b.abs(), "{a} is not {b}");
        close(step.stalls_ms(), 4.002);
        close(step.nodes_ms(), 15.498);
        close(step.marked_ms(), 20.0);
        close(step.bytes(), 460e6); // half of the first and a third of the last
        close(step.copying_ms(), 1.0 + 14.5 + 1.0);
        close(step.rates()[0], 460.0 / 16.5);
        close(step.rates()[1], 23.0);
        assert_eq!(step.waits().iter().map(|span| &*span.name).collect::<Vec<_>>(), ["blocks.1.qkv", "odd \"name\""]);
        let nothing = &streamed.stages[1];
        assert_eq!((nothing.bytes(), nothing.copying_ms(), nothing.rates()), (0.0, 0.0, [0.0, 0.0]));
    }

    #[test]
    fn the_table_has_the_turn_beside_the_plan_and_the_longest_waits() {
        let text = streamed().text();
        let lines: Vec<String> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for line in [
            "weights stream: 5.00 GB for activations and weights, of which 3.00 GB stay; the host keeps 17.00 GB ready, and the link \
             carries 55.0 GB/s",
            "a turn of step measured planned",
            "all of it 19.800 ms 18.000 ms",
            "nodes 15.498 ms 16.000 ms",
            "waits for weights 4.002 ms 2.000 ms",
            "copied 460.0 MB 460.0 MB",
            "rate while copying 27.9 GB/s 55.0 GB/s",
            "rate over the turn 23.0 GB/s 25.6 GB/s",
            "nodes and waits are 19.500 ms of the 20.000 ms that a turn with marks takes (+1.01 % of one without)",
            "step: the 2 longest waits for weights, in ms, each before",
            "3.0000 15.00% blocks.1.qkv and 11 more nodes",
            "1.0000 5.00% odd \"name\"",
            "text: the 0 longest waits for weights, in ms, each before",
        ] {
            assert!(lines.iter().any(|found| found == line), "no {line:?} in:\n{text}");
        }
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }

    #[test]
    fn the_object_has_the_same_numbers_and_every_segment_and_copy() {
        let object = streamed().json();
        assert_eq!(object["region_bytes"], 5_000_000_000u64);
        let step = &object["stages"]["step"];
        assert_eq!((&step["turn_ms"], &step["marked_ms"], &step["bytes"]), (&json!(19.8), &json!(20.0), &json!(460_000_000)));
        assert_eq!(step["planned"], json!({"turn_ms": 18.0, "stalls_ms": 2.0, "bytes": 460_000_000}));
        assert_eq!(step["longest_stalls"], json!([{"before": "blocks.1.qkv", "ms": 3.0}, {"before": "odd \"name\"", "ms": 1.0}]));
        let segment = json!({"name": "blocks.1.qkv", "nodes": 12, "waits_ms": 8.0, "begins_ms": 11.0, "ends_ms": 15.0});
        assert_eq!((step["segments"].as_array().unwrap().len(), &step["segments"][1]), (3, &segment));
        let copy = json!({"weight": "a.weight", "bytes": 80_000_000, "begins_ms": -1.0, "ends_ms": 1.0, "gb_per_s": 40.0});
        assert_eq!((step["copies"].as_array().unwrap().len(), &step["copies"][0]), (4, &copy));
    }

    /// Perfetto wants each track's slices beside each other, and each track named before them.
    #[test]
    fn copies_are_a_track_of_their_own_and_waits_are_seen() {
        let trace = streamed().trace();
        let events = trace["traceEvents"].as_array().unwrap();
        let (mut tracks, mut ends) = (std::collections::HashMap::new(), std::collections::HashMap::new());
        let mut found = Vec::new();
        for event in events {
            let track = event["tid"].as_u64().unwrap();
            if event["ph"] == "M" {
                if event["name"] == "thread_name" {
                    tracks.insert(track, event["args"]["name"].as_str().unwrap());
                }
                continue;
            }
            let [begins, long] = ["ts", "dur"].map(|key| event[key].as_f64().unwrap());
            let before = ends.insert(track, begins + long).unwrap_or(0.0);
            assert!(begins >= before - 1e-6 && long > 0.0, "{event} begins before {before}");
            found.push((tracks[&track], event["name"].as_str().unwrap(), begins, long));
        }
        let all = [
            ("compute", "blocks.0.qkv", 2.0, 7998.0),
            ("compute", "waits for weights", 8000.0, 3000.0),
            ("compute", "blocks.1.qkv", 11_000.0, 4000.0),
            ("compute", "waits for weights", 15_500.0, 1000.0),
            ("compute", "odd \"name\"", 16_500.0, 3500.0),
            ("copies", "a.weight", 0.0, 1000.0),
            ("copies", "b.weight", 2000.0, 9000.0),
            ("copies 2", "c.weight", 9000.0, 7500.0),
            ("copies", "d.weight", 19_000.0, 1000.0),
            ("compute", "embed", 20_000.0, 1000.0),
        ];
        assert_eq!(found.len(), all.len(), "{found:?}");
        for (found, wanted) in found.iter().zip(all) {
            let near = (found.2 - wanted.2).abs() < 1e-6 && (found.3 - wanted.3).abs() < 1e-6;
            assert!((found.0, found.1) == (wanted.0, wanted.1) && near, "{found:?} is not {wanted:?}");
        }
        let copy = events.iter().find(|event| event["name"] == "a.weight").unwrap();
        assert_eq!(copy["args"], json!({"bytes": 80_000_000, "gb_per_s": 40.0}));
    }
}
