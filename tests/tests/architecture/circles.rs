//! Circles in who uses whom: below each module, between what stands side by side there.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
};

use super::modules::{Place, Uses};

/// What stands side by side and leads back to itself, whichever of it one begins with.
#[derive(Debug)]
pub struct Circle {
    /// The module below which it is; empty between crates.
    pub inside: String,
    /// All of it, sorted.
    pub members: Vec<String>,
    /// A shortest way through it and back to its beginning.
    pub way: Vec<Step>,
}

/// One step of a way: who uses something of whom, and where.
#[derive(Debug)]
pub struct Step {
    from: String,
    to: String,
    place: Place,
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inside = if self.inside.is_empty() { "the workspace" } else { &self.inside };
        write!(f, "a circle in {inside}: {}", self.way.first().map_or("", |step| step.from.as_str()))?;
        self.way.iter().try_for_each(|step| write!(f, " → {}", step.to))?;
        writeln!(f)?;
        for Step { from, to, place: Place { at, path } } in &self.way {
            writeln!(f, "    {from} → {to}: {at} uses {path}")?;
        }
        if self.members.len() > self.way.len() {
            writeln!(f, "    it holds all of {}", self.members.join(", "))?;
        }
        Ok(())
    }
}

/// Who uses whom of what stands side by side.
type Level<'a> = BTreeMap<&'a str, BTreeMap<&'a str, &'a Place>>;

/// All circles.
pub fn circles(uses: &Uses) -> Vec<Circle> {
    let mut levels: BTreeMap<&[String], Level<'_>> = BTreeMap::new();
    for ((from, to), place) in uses {
        let shared = from.iter().zip(to).take_while(|(a, b)| a == b).count();
        // Where one is a parent of the other they do not stand side by side.
        if let (Some(a), Some(b)) = (from.get(shared), to.get(shared)) {
            levels
                .entry(&from[..shared])
                .or_default()
                .entry(a.as_str())
                .or_default()
                .entry(b)
                .or_insert(place);
        }
    }
    levels.iter().flat_map(|(inside, level)| below(inside, level)).collect()
}

/// The circles of what stands side by side.
fn below(inside: &[String], level: &Level<'_>) -> Vec<Circle> {
    let groups: BTreeSet<Vec<&str>> = level.keys().filter_map(|start| group(level, start)).collect();
    groups
        .into_iter()
        .map(|members| Circle {
            inside: inside.join("::"),
            way: way(level, &members),
            members: members.into_iter().map(str::to_owned).collect(),
        })
        .collect()
}

/// All that `start` leads to and that leads back to it; none if nothing does.
fn group<'a>(level: &Level<'a>, start: &str) -> Option<Vec<&'a str>> {
    let group: Vec<&str> =
        reach(level, start).into_iter().filter(|other| reach(level, other).contains(start)).collect();
    (!group.is_empty()).then_some(group)
}

/// All that `start` uses, or that is used by what it uses, and so on.
fn reach<'a>(level: &Level<'a>, start: &str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next = vec![start];
    while let Some(one) = next.pop() {
        for other in level.get(one).into_iter().flat_map(BTreeMap::keys) {
            if reached.insert(*other) {
                next.push(*other);
            }
        }
    }
    reached
}

/// The shortest way from the first member back to it.
fn way(level: &Level<'_>, members: &[&str]) -> Vec<Step> {
    let start = members[0];
    let mut ways: VecDeque<Vec<&str>> = VecDeque::from([vec![start]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        let last = way[way.len() - 1];
        for next in level.get(last).into_iter().flat_map(BTreeMap::keys) {
            let longer: Vec<&str> = way.iter().copied().chain([*next]).collect();
            if *next == start {
                return steps(level, &longer);
            }
            if seen.insert(*next) {
                ways.push_back(longer);
            }
        }
    }
    Vec::new()
}

fn steps(level: &Level<'_>, way: &[&str]) -> Vec<Step> {
    way.windows(2)
        .map(|pair| Step {
            from: pair[0].to_owned(),
            to: pair[1].to_owned(),
            place: level[pair[0]][pair[1]].clone(),
        })
        .collect()
}
