//! What a section found: rows with their goals, as a table for people, as JSON, and as a table of Markdown.

use std::fmt;

use serde_json::{Value, json};

use crate::figures::Figures;

/// Rounds above this distance between their quartiles (over the median) decide nothing.
const MOST_SPREAD: f64 = 0.05;

/// A section's rows.
pub(crate) struct Report {
    /// Its name.
    pub(crate) section: &'static str,
    /// What its figures are of, in a sentence or two.
    pub(crate) about: &'static str,
    /// Its rows, in order.
    pub(crate) rows: Vec<Row>,
}

/// One row.
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    figures: Figures,
    goal: Option<Goal>,
    /// Why nothing was measured.
    missing: Option<String>,
}

/// What a row is held to.
struct Goal {
    /// What it is compared with; none: the figure itself is.
    yardstick: Option<String>,
    compared: Figures,
    /// None: the comparison is only shown.
    bound: Option<Bound>,
    /// What the lower end of the 95 % interval must reach too; the distance between quartiles then decides nothing.
    lower_end: Option<f64>,
}

/// On which side of a number the median must be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// It may reach it and be smaller.
    AtMost(f64),
    /// It must reach it and may be greater.
    AtLeast(f64),
}

impl Bound {
    fn holds(self, figure: f64) -> bool {
        match self {
            Self::AtMost(most) => figure <= most,
            Self::AtLeast(least) => figure >= least,
        }
    }

    fn number(self) -> f64 {
        match self {
            Self::AtMost(number) | Self::AtLeast(number) => number,
        }
    }

    fn sign(self) -> char {
        match self {
            Self::AtMost(_) => '≤',
            Self::AtLeast(_) => '≥',
        }
    }
}

impl Row {
    /// A figure without a goal.
    pub(crate) fn plain(name: &str, unit: &'static str, figures: &Figures) -> Self {
        Self {
            name: name.to_owned(),
            unit,
            figures: figures.clone(),
            goal: None,
            missing: None,
        }
    }

    /// What could not be measured on this machine, and why.
    pub(crate) fn missing(name: &str, why: &str) -> Self {
        Self {
            missing: Some(why.to_owned()),
            ..Self::plain(name, "", &Figures::default())
        }
    }

    /// A figure that is held to a multiple of another's.
    pub(crate) fn ratio(
        name: &str,
        unit: &'static str,
        figures: &Figures,
        yardstick: &str,
        than: &Figures,
        bound: Bound,
    ) -> Self {
        Self::taken_beside(name, unit, figures, yardstick, &figures.over(than), bound)
    }

    /// As [`Self::ratio`], where each round has its ratio already.
    pub(crate) fn taken_beside(
        name: &str,
        unit: &'static str,
        figures: &Figures,
        yardstick: &str,
        ratio: &Figures,
        bound: Bound,
    ) -> Self {
        Self {
            goal: Some(Goal {
                yardstick: Some(yardstick.to_owned()),
                compared: ratio.clone(),
                bound: Some(bound),
                lower_end: None,
            }),
            ..Self::plain(name, unit, figures)
        }
    }

    /// A figure beside another's, without a goal.
    pub(crate) fn beside(name: &str, unit: &'static str, figures: &Figures, yardstick: &str, than: &Figures) -> Self {
        let mut row = Self::ratio(name, unit, figures, yardstick, than, Bound::AtLeast(0.0));
        if let Some(goal) = &mut row.goal {
            goal.bound = None;
        }
        row
    }

    /// As [`Self::ratio`], with the least that the lower end of the 95 % interval may be.
    pub(crate) fn with_lower_end(mut self, least: f64) -> Self {
        if let Some(goal) = &mut self.goal {
            goal.lower_end = Some(least);
        }
        self
    }

    /// A figure that may be at most `goal`.
    pub(crate) fn below(name: &str, unit: &'static str, figures: &Figures, goal: f64) -> Self {
        Self {
            goal: Some(Goal {
                yardstick: None,
                compared: figures.clone(),
                bound: Some(Bound::AtMost(goal)),
                lower_end: None,
            }),
            ..Self::plain(name, unit, figures)
        }
    }

    fn json(&self) -> Value {
        if let Some(why) = &self.missing {
            return json!({ "name": self.name, "missing": why });
        }
        let goal = self.goal.as_ref().map(|goal| {
            let (low, high) = goal.compared.interval();
            json!({
                "yardstick": goal.yardstick,
                "ratio": goal.compared.json(),
                "interval": [low, high],
                "bound": goal.bound.map(|bound| format!("{} {}", bound.sign(), bound.number())),
                "met": goal.verdict().map(|verdict| verdict == Verdict::Met),
            })
        });
        json!({ "name": self.name, "unit": self.unit, "figures": self.figures.json(), "goal": goal })
    }

    /// Measured, compared, goal and verdict, in words.
    fn cells(&self) -> [String; 4] {
        if let Some(why) = &self.missing {
            return [
                format!("not measured: {why}"),
                String::new(),
                String::new(),
                String::new(),
            ];
        }
        let measured = format!(
            "{} {} ± {:.1} %",
            short(self.figures.median()),
            self.unit,
            100.0 * self.figures.spread()
        );
        let Some(goal) = &self.goal else {
            return [measured, String::new(), String::new(), String::new()];
        };
        let (ratio, spread) = (goal.compared.median(), 100.0 * goal.compared.spread());
        let (low, high) = goal.compared.interval();
        let compared = match (&goal.yardstick, goal.lower_end) {
            (None, _) => String::new(),
            (Some(yardstick), None) => format!("{} × {yardstick} ± {spread:.1} %", short(ratio)),
            (Some(yardstick), Some(_)) => {
                format!("{} × {yardstick}, {} to {}", short(ratio), short(low), short(high))
            }
        };
        let wanted = goal.bound.map_or_else(String::new, |bound| {
            let unit = if goal.yardstick.is_some() { "×" } else { self.unit };
            let least = goal.lower_end.map(|least| format!(", lower end ≥ {}", short(least)));
            format!(
                "{} {} {unit}{}",
                bound.sign(),
                short(bound.number()),
                least.unwrap_or_default()
            )
        });
        let verdict = goal.verdict().map(|verdict| verdict.to_string());
        [measured, compared, wanted, verdict.unwrap_or_default()]
    }
}

/// Two or three digits that matter.
fn short(figure: f64) -> String {
    match figure.abs() {
        100.0.. => format!("{figure:.0}"),
        10.0.. => format!("{figure:.1}"),
        1.0.. => format!("{figure:.2}"),
        _ => format!("{figure:.3}"),
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

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::Unsteady => "MISSED (unsteady)",
        })
    }
}

impl Goal {
    fn verdict(&self) -> Option<Verdict> {
        let met = self.bound?.holds(self.compared.median());
        let steady = match self.lower_end {
            Some(least) => self.compared.interval().0 >= least,
            None => self.yardstick.is_none() || self.compared.spread() <= MOST_SPREAD,
        };
        Some(match (met, steady) {
            (true, true) => Verdict::Met,
            (true, false) => Verdict::Unsteady,
            (false, _) => Verdict::Missed,
        })
    }
}

impl Report {
    /// For the JSON file.
    pub(crate) fn json(&self) -> Value {
        json!({ "section": self.section, "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>() })
    }

    /// The figures of the row of a name.
    pub(crate) fn figures(&self, name: &str) -> Option<&Figures> {
        let row = self.rows.iter().find(|row| row.name == name)?;
        row.missing.is_none().then_some(&row.figures)
    }

    /// What it is about, and its rows as a table.
    pub(crate) fn markdown(&self) -> String {
        let rows = self
            .rows
            .iter()
            .map(|row| format!("| {} | {} |\n", row.name, row.cells().join(" | ")));
        let rows: String = rows.collect();
        format!(
            "{}\n\n| | measured | against | goal | |\n|---|---|---|---|---|\n{rows}",
            self.about
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.section, self.about)?;
        for row in &self.rows {
            let [measured, compared, wanted, verdict] = row.cells();
            let line = format!(
                "  {:<52} {measured:<22} {compared:<34} {wanted:<24} {verdict}",
                row.name
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rounds: &[f64]) -> Figures {
        let mut figures = Figures::default();
        for round in rounds {
            figures.push(*round);
        }
        figures
    }

    fn verdict(row: &Row) -> Verdict {
        row.goal.as_ref().unwrap().verdict().unwrap()
    }

    #[test]
    fn a_ratio_whose_rounds_differ_much_counts_as_missed() {
        let ones = of(&[1.0; 4]);
        let row = |rounds: &[f64], bound| Row::ratio("", "", &of(rounds), "one", &ones, bound);
        assert_eq!(verdict(&row(&[4.0; 4], Bound::AtLeast(3.0))), Verdict::Met);
        assert_eq!(
            verdict(&row(&[4.0, 5.0, 6.0, 7.0], Bound::AtLeast(3.0))),
            Verdict::Unsteady
        );
        assert_eq!(verdict(&row(&[4.0; 4], Bound::AtMost(3.0))), Verdict::Missed);
    }

    #[test]
    fn a_figure_alone_may_differ_from_round_to_round() {
        assert_eq!(verdict(&Row::below("", "ms", &of(&[1.0, 2.0, 3.0]), 2.5)), Verdict::Met);
    }

    #[test]
    fn what_could_not_be_measured_is_told_with_its_reason() {
        let report = Report {
            section: "forward",
            about: "",
            rows: vec![Row::missing("iptables", "no table")],
        };
        assert!(
            report
                .markdown()
                .ends_with("| iptables | not measured: no table |  |  |  |\n")
        );
        assert!(report.figures("iptables").is_none());
        assert_eq!(report.json()["rows"][0]["missing"], "no table");
    }

    #[test]
    fn the_lower_end_of_the_interval_decides_where_it_is_asked_for() {
        let ones = of(&[1.0; 6]);
        let row =
            |rounds: &[f64]| Row::ratio("", "", &of(rounds), "one", &ones, Bound::AtLeast(0.98)).with_lower_end(0.95);
        assert_eq!(verdict(&row(&[0.97, 0.99, 1.0, 1.0, 1.01, 1.03])), Verdict::Met);
        assert_eq!(verdict(&row(&[0.7, 0.8, 1.0, 1.0, 1.2, 1.3])), Verdict::Unsteady);
    }
}
