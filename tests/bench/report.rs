//! What a section found: rows with their goals, as a table for people and as JSON.

use std::fmt;

use serde_json::{Value, json};

use crate::figures::Figures;

/// Rounds above this distance between their quartiles (over the median) decide nothing.
const MOST_SPREAD: f64 = 0.05;

/// A section's rows.
pub(crate) struct Report {
    /// Its name.
    pub(crate) section: &'static str,
    /// Its rows, in order.
    pub(crate) rows: Vec<Row>,
}

/// One row.
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    figures: Figures,
    goal: Option<Goal>,
}

/// What a row is held to.
struct Goal {
    /// What it is compared with; none: the figure itself is.
    yardstick: Option<String>,
    compared: Figures,
    at_most: f64,
}

impl Row {
    /// A figure without a goal.
    pub(crate) fn plain(name: &str, unit: &'static str, figures: &Figures) -> Self {
        Self {
            name: name.to_owned(),
            unit,
            figures: figures.clone(),
            goal: None,
        }
    }

    /// A figure that may be at most `goal` times another's.
    pub(crate) fn at_most(
        name: &str,
        unit: &'static str,
        figures: &Figures,
        yardstick: &str,
        than: &Figures,
        goal: f64,
    ) -> Self {
        Self {
            goal: Some(Goal {
                yardstick: Some(yardstick.to_owned()),
                compared: figures.over(than),
                at_most: goal,
            }),
            ..Self::plain(name, unit, figures)
        }
    }

    /// A figure that may be at most `goal`.
    pub(crate) fn below(name: &str, unit: &'static str, figures: &Figures, goal: f64) -> Self {
        Self {
            goal: Some(Goal {
                yardstick: None,
                compared: figures.clone(),
                at_most: goal,
            }),
            ..Self::plain(name, unit, figures)
        }
    }

    fn json(&self) -> Value {
        let goal = self.goal.as_ref().map(|goal| {
            json!({
                "yardstick": goal.yardstick,
                "ratio": goal.compared.json(),
                "at_most": goal.at_most,
                "met": goal.verdict() == Verdict::Met,
            })
        });
        json!({ "name": self.name, "unit": self.unit, "figures": self.figures.json(), "goal": goal })
    }
}

/// Whether a goal is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Met,
    Missed,
    /// The rounds differ too much to tell.
    Unsteady,
}

impl Goal {
    fn verdict(&self) -> Verdict {
        if self.yardstick.is_some() && self.compared.spread() > MOST_SPREAD {
            Verdict::Unsteady
        } else if self.compared.median() <= self.at_most {
            Verdict::Met
        } else {
            Verdict::Missed
        }
    }
}

impl Report {
    /// For the JSON file.
    pub(crate) fn json(&self) -> Value {
        json!({ "section": self.section, "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<52} {:>10} {:>7}  {:>8} {:>7} {:>7}",
            self.section, "median", "spread", "ratio", "spread", "goal"
        )?;
        for row in &self.rows {
            let (median, spread) = (row.figures.median(), 100.0 * row.figures.spread());
            write!(f, "{:<52} {median:>7.1} {:<2} {spread:>6.1}%", row.name, row.unit)?;
            let Some(goal) = &row.goal else {
                writeln!(f)?;
                continue;
            };
            let word = match goal.verdict() {
                Verdict::Met => "met",
                Verdict::Missed => "MISSED",
                Verdict::Unsteady => "unsteady: counts as missed",
            };
            match &goal.yardstick {
                Some(yardstick) => writeln!(
                    f,
                    "  {:>7.2}× {:>6.1}% {:>6.2}×  {yardstick}: {word}",
                    goal.compared.median(),
                    100.0 * goal.compared.spread(),
                    goal.at_most
                )?,
                None => writeln!(f, "  {:>8} {:>7} {:>5.0} {}  {word}", "", "", goal.at_most, row.unit)?,
            }
        }
        Ok(())
    }
}
