//! What runs, in which order, how often.
//!
//! A graph's bodies are recorded once, in program order; an itinerary is the journey over them, as data: a list of *legs*,
//! each with the bodies that take turns in it. It prints as `text, conditioning, step x28, vae_decode`, a leg whose turns
//! are of several bodies as `step|cached 0110111`.
//!
//! A plan has one itinerary, which says how long storages must keep their bytes. A run of the plan may be of another: a
//! part of it, or its bodies again; what a run brings to the device follows the run's.

use std::fmt;
use std::ops::Range;

use anyhow::{Result, ensure};

use crate::graph::{BodyId, Graph};

/// What runs, in which order, how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Itinerary(pub Vec<Leg>);

/// Bodies that take turns. What was made before the leg and is read in it lives through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The bodies, recorded one after another.
    pub bodies: Vec<BodyId>,
    /// How often, and which of them in each turn.
    pub turns: Turns,
}

/// The turns of a leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turns {
    /// So many, each of all bodies in order.
    Times(usize),
    /// One body a turn: its number among the leg's.
    Mask(Vec<u8>),
    /// Each of all bodies in order, until the host has seen enough.
    UntilHostSays {
        /// No more than so many.
        most: usize,
    },
}

impl Leg {
    /// How many bodies run in the leg, at most, each as often as it runs.
    pub fn visits(&self) -> Vec<BodyId> {
        match &self.turns {
            Turns::Times(n) | Turns::UntilHostSays { most: n } => {
                std::iter::repeat_n(&self.bodies, *n).flatten().copied().collect()
            }
            Turns::Mask(letters) => letters.iter().map(|&letter| self.bodies[letter as usize]).collect(),
        }
    }

    /// How often a body runs in the leg, at most.
    pub fn runs_of(&self, body: BodyId) -> usize {
        self.visits().iter().filter(|&&visited| visited == body).count()
    }

    /// Whether its bodies may run again, or in another order than they were recorded in.
    pub fn comes_round(&self) -> bool {
        self.turns != Turns::Times(1)
    }

    /// The leg's nodes in the graph.
    pub fn nodes(&self, graph: &Graph) -> Range<usize> {
        let start = self.bodies.iter().map(|&body| graph.nodes_of(body).start).min().unwrap_or(0);
        let end = self.bodies.iter().map(|&body| graph.nodes_of(body).end).max().unwrap_or(0);
        start..end
    }

    fn check(&self, graph: &Graph) -> Result<()> {
        let numbers: Vec<usize> = self.bodies.iter().map(|body| body.0).collect();
        ensure!(!numbers.is_empty(), "a leg of the itinerary has no body");
        ensure!(
            numbers.iter().all(|&n| n < graph.bodies.len()),
            "the itinerary names the bodies {numbers:?}, but there are {}",
            graph.bodies.len()
        );
        ensure!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "bodies {numbers:?} of a leg are not recorded in a row");
        if let Turns::Mask(letters) = &self.turns {
            let most = letters.iter().max().map_or(0, |&letter| letter as usize);
            ensure!(most < numbers.len(), "a mask asks for body {most} of a leg that has {}", numbers.len());
            // A body may read what one recorded before it has written.
            let first = |n: usize| letters.iter().position(|&letter| letter as usize == n);
            let firsts: Vec<_> = (0..numbers.len()).map(first).collect();
            ensure!(
                firsts.is_sorted() && !firsts.contains(&None),
                "a mask must begin the bodies of its leg in their order, each once"
            );
        }
        ensure!(!self.visits().is_empty(), "the body {} has no turn", graph.bodies[numbers[0]].name);
        Ok(())
    }
}

impl Itinerary {
    /// Each body once, in order.
    pub fn once(bodies: impl IntoIterator<Item = BodyId>) -> Itinerary {
        Itinerary::default().then_once(bodies)
    }

    /// Then each of these bodies once.
    pub fn then_once(mut self, bodies: impl IntoIterator<Item = BodyId>) -> Itinerary {
        self.0.extend(bodies.into_iter().map(|body| Leg { bodies: vec![body], turns: Turns::Times(1) }));
        self
    }

    /// Then a body so many times.
    pub fn then_times(mut self, body: BodyId, times: usize) -> Itinerary {
        self.0.push(Leg { bodies: vec![body], turns: Turns::Times(times) });
        self
    }

    /// Every body once, in the order in which they were recorded.
    pub fn of_all(graph: &Graph) -> Itinerary {
        Itinerary::once((0..graph.bodies.len()).map(BodyId))
    }

    /// The same legs, none of a single turn: every body may run again and again before the next begins. It costs memory;
    /// measurements need it.
    pub fn repeatable(mut self) -> Itinerary {
        for leg in &mut self.0 {
            if let Turns::Times(n) = &mut leg.turns {
                *n = (*n).max(2);
            }
        }
        self
    }

    /// The bodies in the order in which they run, at most, each as often as it runs.
    pub fn visits(&self) -> Vec<BodyId> {
        self.0.iter().flat_map(Leg::visits).collect()
    }

    /// Whether a body's leg comes round, so that what it starts from is kept.
    pub fn comes_round(&self, body: BodyId) -> bool {
        self.0.iter().any(|leg| leg.bodies.contains(&body) && leg.comes_round())
    }

    /// How often a body runs, at most.
    pub fn runs_of(&self, body: BodyId) -> usize {
        self.0.iter().map(|leg| leg.runs_of(body)).sum()
    }

    /// Checks that a graph can be planned for it: legs in the order of recording, which visit every body.
    ///
    /// # Errors
    /// The first leg that breaks a rule.
    pub fn check(&self, graph: &Graph) -> Result<()> {
        let mut next = 0;
        for leg in &self.0 {
            leg.check(graph)?;
            let first = leg.bodies[0].0;
            ensure!(first == next, "the itinerary comes to body {first} where {next} is the next that was recorded");
            next += leg.bodies.len();
        }
        ensure!(next == graph.bodies.len(), "the itinerary leaves out {} bodies", graph.bodies.len() - next);
        Ok(())
    }

    /// Checks that a plan made for this itinerary can be run along `run`: a part of it, since what a leg starts from is gone
    /// once a later one has begun. In a leg of several turns bodies may run in any order and as often as they like.
    ///
    /// # Errors
    /// A leg that breaks a rule, or a body that comes too late.
    pub fn check_run(&self, run: &Itinerary, graph: &Graph) -> Result<()> {
        run.0.iter().try_for_each(|leg| leg.check(graph))?;
        let leg_of = |body: BodyId| self.0.iter().position(|leg| leg.bodies.contains(&body));
        for pair in run.visits().windows(2) {
            let (before, after) = (pair[0], pair[1]);
            let later = match leg_of(before) == leg_of(after) {
                true => before < after || self.comes_round(after),
                false => leg_of(before) < leg_of(after),
            };
            let [before, after] = [before, after].map(|body| graph.bodies[body.0].name);
            ensure!(later, "{after} cannot run after {before}: what it starts from is gone by then");
        }
        Ok(())
    }

    /// The itinerary with the bodies' names.
    pub fn named<'a>(&'a self, graph: &'a Graph) -> impl fmt::Display + 'a {
        Named { itinerary: self, graph }
    }
}

struct Named<'a> {
    itinerary: &'a Itinerary,
    graph: &'a Graph,
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (at, leg) in self.itinerary.0.iter().enumerate() {
            let names: Vec<&str> = leg.bodies.iter().map(|body| self.graph.bodies[body.0].name).collect();
            let (comma, names) = (if at > 0 { ", " } else { "" }, names.join("|"));
            match &leg.turns {
                Turns::Times(1) => write!(f, "{comma}{names}")?,
                Turns::Times(n) => write!(f, "{comma}{names} x{n}")?,
                Turns::UntilHostSays { most } => write!(f, "{comma}{names} up to x{most}")?,
                Turns::Mask(letters) => {
                    write!(f, "{comma}{names} ")?;
                    letters.iter().try_for_each(|letter| write!(f, "{letter}"))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Cast;
    use crate::tensor::DType;

    fn graph() -> Graph {
        let mut g = Graph::new();
        let x = g.input("x", DType::F32, [1, 4]);
        for name in ["first", "step", "cached", "last"] {
            g.body(name, |g| g.op(name, Cast(DType::BF16), &[x]));
        }
        g
    }

    fn leg(bodies: &[usize], turns: Turns) -> Leg {
        Leg { bodies: bodies.iter().map(|&n| BodyId(n)).collect(), turns }
    }

    #[test]
    fn it_prints_and_visits_as_it_runs() {
        let g = graph();
        let mask = leg(&[1, 2], Turns::Mask(vec![0, 1, 1, 0]));
        let journey = Itinerary(vec![leg(&[0], Turns::Times(2)), mask, leg(&[3], Turns::UntilHostSays { most: 3 })]);
        journey.check(&g).unwrap();
        assert_eq!(journey.named(&g).to_string(), "first x2, step|cached 0110, last up to x3");
        let visits: Vec<usize> = journey.visits().iter().map(|body| body.0).collect();
        assert_eq!(visits, [0, 0, 1, 2, 2, 1, 3, 3, 3]);
        assert_eq!([0, 1, 2, 3].map(|n| journey.runs_of(BodyId(n))), [2, 2, 2, 3]);
        assert_eq!(Itinerary::of_all(&g).repeatable().named(&g).to_string(), "first x2, step x2, cached x2, last x2");
    }

    #[test]
    fn what_cannot_be_planned_is_refused() {
        let g = graph();
        let refused = |legs: Vec<Leg>| Itinerary(legs).check(&g).unwrap_err().to_string();
        let once = |bodies: &[usize]| leg(bodies, Turns::Times(1));
        assert!(refused(vec![once(&[0, 1, 2])]).contains("leaves out 1"));
        assert!(refused(vec![once(&[1])]).contains("comes to body 1 where 0"));
        assert!(refused(vec![once(&[0, 2])]).contains("not recorded in a row"));
        assert!(refused(vec![once(&[0]), leg(&[1, 2], Turns::Mask(vec![0, 2]))]).contains("body 2 of a leg that has 2"));
        let unwritten = |letters| refused(vec![once(&[0]), leg(&[1, 2], Turns::Mask(letters))]);
        assert!(unwritten(vec![1, 0]).contains("in their order") && unwritten(vec![0, 0]).contains("each once"));
        assert!(refused(vec![leg(&[0], Turns::Times(0))]).contains("first has no turn"));
        assert!(refused(vec![once(&[7])]).contains("names the bodies [7], but there are 4"));
    }

    #[test]
    fn a_run_takes_a_part_of_the_journey_in_its_order() {
        let g = graph();
        let middle = leg(&[1, 2], Turns::Mask(vec![0, 1]));
        let planned = Itinerary(vec![leg(&[0], Turns::Times(1)), middle, leg(&[3], Turns::Times(1))]);
        let run = |bodies: &[usize]| planned.check_run(&Itinerary::once(bodies.iter().map(|&n| BodyId(n))), &g);
        for fine in [&[0, 1, 2, 3][..], &[2, 1, 1, 2], &[3], &[1, 1, 3], &[]] {
            run(fine).unwrap();
        }
        for twice in [&[3, 3][..], &[0, 0]] {
            assert!(run(twice).unwrap_err().to_string().contains("is gone by then"), "{twice:?} keep nothing for a second turn");
        }
        let text = run(&[1, 0]).unwrap_err().to_string();
        assert!(text.contains("first cannot run after step"), "{text}");
        assert!(run(&[3, 2]).is_err() && run(&[4]).is_err());
    }
}
