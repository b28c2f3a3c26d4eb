//! The table that README.md's section "Performance" is made of.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::stats::{Summary, ratio, show};

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    what: String,
    floor: String,
    rekindle: String,
    ratios: Vec<f64>,
    goal: Goal,
    command: String,
}

/// What the figure is to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Goal {
    /// The ratio to the floor is at most this; of several ratios each at most its own.
    Ratios(Vec<f64>),
    /// A condition in words, and whether it holds.
    Met(String, bool),
    /// There is none: the figure stands beside another.
    None,
}

/// The rows so far.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Row {
    /// A figure with a floor.
    pub fn timed(what: impl Into<String>, floor: Duration, rekindle: Duration, goal: Goal) -> Self {
        Self {
            what: what.into(),
            floor: show(floor),
            rekindle: show(rekindle),
            ratios: vec![ratio(rekindle, floor)],
            goal,
            command: String::new(),
        }
    }

    /// Many figures with a floor: p50 and p99 are compared. A drift that was not restored misses any goal.
    pub fn compared(what: impl Into<String>, floor: Summary, rekindle: Summary, n_missed: usize, goal: Goal) -> Self {
        let missed = if n_missed > 0 { format!(", **{n_missed} not restored**") } else { String::new() };
        Self {
            what: what.into(),
            floor: floor.to_string(),
            rekindle: format!("{rekindle}{missed}"),
            ratios: vec![ratio(rekindle.p50, floor.p50), ratio(rekindle.p99, floor.p99)],
            goal: if n_missed > 0 { Goal::Met("all restored".to_owned(), false) } else { goal },
            command: String::new(),
        }
    }

    /// A figure that stands for itself.
    pub fn plain(what: impl Into<String>, rekindle: impl Into<String>, goal: Goal) -> Self {
        Self {
            what: what.into(),
            floor: "–".to_owned(),
            rekindle: rekindle.into(),
            ratios: Vec::new(),
            goal,
            command: String::new(),
        }
    }

    /// A duration that is to be at most `limit`.
    pub fn within(what: impl Into<String>, rekindle: Duration, limit: Duration) -> Self {
        Self::plain(what, show(rekindle), Goal::Met(format!("≤ {}", show(limit)), rekindle <= limit))
    }

    /// A figure of a floor program alone.
    pub fn floor(what: impl Into<String>, floor: Duration) -> Self {
        Self { floor: show(floor), rekindle: "–".to_owned(), ..Self::plain(what, "", Goal::None) }
    }

    fn is_met(&self) -> Option<bool> {
        match &self.goal {
            Goal::Ratios(most) => Some(self.ratios.iter().zip(most).all(|(ratio, most)| ratio <= most)),
            Goal::Met(_, met) => Some(*met),
            Goal::None => None,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |texts: Vec<String>| if texts.is_empty() { "–".to_owned() } else { texts.join(", ") };
        let ratio = join(self.ratios.iter().map(|ratio| format!("{ratio:.2}")).collect());
        let goal = match &self.goal {
            Goal::Ratios(most) => join(most.iter().map(|most| format!("≤ {most}")).collect()),
            Goal::Met(goal, _) => goal.clone(),
            Goal::None => "–".to_owned(),
        };
        let met = match self.is_met() {
            Some(true) => "met: ",
            Some(false) => "**missed**: ",
            None => "",
        };
        let Self { what, floor, rekindle, command, .. } = self;
        write!(f, "| {what} | {floor} | {rekindle} | {ratio} | {met}{goal} | `{command}` |")
    }
}

impl Table {
    /// Adds the rows that one command printed.
    pub fn add(&mut self, command: &str, rows: Vec<Row>) {
        self.rows.extend(rows.into_iter().map(|row| Row { command: command.to_owned(), ..row }));
    }

    /// How many rows miss their goal.
    pub fn n_missed(&self) -> usize {
        self.rows.iter().filter(|row| row.is_met() == Some(false)).count()
    }

    /// The table in Markdown.
    pub fn to_markdown(&self) -> String {
        let mut text = "| what | floor | rekindle | ratio | goal | command |\n|---|--:|--:|--:|---|---|\n".to_owned();
        for row in &self.rows {
            text.push_str(&format!("{row}\n"));
        }
        text
    }
}

/// The machine in one line: processor, kernel, file system, load; and what was measured.
pub fn machine(base: &Path, rekindle: &Path) -> Result<String> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let model = model.trim_start_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load: Vec<&str> = load.split(' ').take(3).collect();
    let file_system = crate::proc::file_system(base)?;
    let commit = rekindle_tests::Invocation::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit = commit.map_or_else(|_| String::new(), |output| output.stdout.trim().to_owned());
    Ok(format!(
        "{cores} × {model}, Linux {}, {file_system}, load {}; {} of commit {commit}",
        kernel.trim(),
        load.join(" "),
        rekindle.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_or_missed_or_none() {
        let mut table = Table::default();
        let floor = Duration::from_micros(100);
        let summary = |micros| {
            let value = Duration::from_micros(micros);
            Summary { n: 1, p50: value, p99: value, max: value }
        };
        table.add(
            "run latency",
            vec![
                Row::timed("p50", floor, Duration::from_micros(140), Goal::Ratios(vec![1.5])),
                Row::compared("both", summary(100), summary(210), 0, Goal::Ratios(vec![2.5, 2.0])),
                Row::compared("lost", summary(100), summary(100), 1, Goal::Ratios(vec![1.5])),
                Row::floor("floor", floor),
                Row::within("storm", Duration::from_millis(300), Duration::from_millis(200)),
            ],
        );
        assert_eq!(
            table.to_markdown(),
            "| what | floor | rekindle | ratio | goal | command |\n\
             |---|--:|--:|--:|---|---|\n\
             | p50 | 100 µs | 140 µs | 1.40 | met: ≤ 1.5 | `run latency` |\n\
             | both | p50 100 µs, p99 100 µs, max 100 µs | p50 210 µs, p99 210 µs, max 210 µs | 2.10, 2.10 | **missed**: ≤ 2.5, ≤ 2 | `run latency` |\n\
             | lost | p50 100 µs, p99 100 µs, max 100 µs | p50 100 µs, p99 100 µs, max 100 µs, **1 not restored** | 1.00, 1.00 | **missed**: all restored | `run latency` |\n\
             | floor | 100 µs | – | – | – | `run latency` |\n\
             | storm | – | 300 ms | – | **missed**: ≤ 200 ms | `run latency` |\n"
        );
        assert_eq!(table.n_missed(), 3);
    }
}
