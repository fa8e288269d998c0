//! The report as text: a line for each row, a column for each VMM, and how much less ours is.

use super::figures::{Direction, Figures, GROUPS, Row};

/// One value of a row: the number with its unit, and ours divided by it.
pub struct Cell {
    /// The number, or a dash.
    pub text: String,
    /// Ours / this; none for ours itself.
    pub ratio: Option<f64>,
}

/// The row's cells, one for each VMM; none if nobody has a value.
pub fn cells(figures: &Figures, row: &Row) -> Option<Vec<Cell>> {
    let values: Vec<Option<f64>> =
        figures.contenders.iter().map(|measured| measured.least(row.metric)).collect();
    values.iter().any(Option::is_some).then(|| {
        let ours = values.first().copied().flatten();
        let ratio = |index: usize, value: f64| {
            ours.filter(|_| index > 0 && value > 0.0 && row.direction == Direction::Less)
                .map(|ours| ours / value)
        };
        values
            .iter()
            .enumerate()
            .map(|(index, value)| match *value {
                Some(value) => Cell { text: row.unit.show(value), ratio: ratio(index, value) },
                None => Cell { text: "-".to_owned(), ratio: None },
            })
            .collect()
    })
}

/// The whole table.
pub fn text(figures: &Figures) -> String {
    let mut lines = vec![header(figures)];
    for group in GROUPS {
        let rows: Vec<Vec<String>> =
            group.rows.iter().filter_map(|row| Some(line(row, &cells(figures, row)?))).collect();
        if !rows.is_empty() {
            lines.push(vec![String::new()]);
            lines.push(vec![group.title.to_owned()]);
            lines.extend(rows);
        }
    }
    align(&lines) + &legend(figures)
}

/// What the columns and the marks mean.
fn legend(figures: &Figures) -> String {
    let mut out = "\nLess is better, except in rows with a *: they explain others. Columns:\n".to_owned();
    for measured in figures.contenders.iter().filter(|measured| !measured.about.is_empty()) {
        out.push_str(&format!("  {}: {}\n", measured.name, measured.about));
    }
    out
}

fn header(figures: &Figures) -> Vec<String> {
    let names = figures.contenders.iter().map(|measured| measured.name.clone());
    ["least of all runs (ours / other)".to_owned()].into_iter().chain(names).collect()
}

fn line(row: &Row, cells: &[Cell]) -> Vec<String> {
    let cell = |cell: &Cell| match cell.ratio {
        Some(ratio) => format!("{} ({ratio:.2})", cell.text),
        None => cell.text.clone(),
    };
    let mark = if row.direction == Direction::Neither { " *" } else { "" };
    [format!("  {}{mark}", row.title)].into_iter().chain(cells.iter().map(cell)).collect()
}

/// Columns as wide as their widest word: the first to the left, the others to the right.
fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|word| word.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for line in lines {
        let mut text = String::new();
        for (index, (word, width)) in line.iter().zip(&widths).enumerate() {
            if index == 0 {
                text.push_str(&format!("{word:<width$}"));
            } else {
                text.push_str(&format!("  {word:>width$}"));
            }
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::figures::Measured;
    use super::*;

    #[test]
    fn columns_are_aligned_and_ratios_are_ours_by_theirs() {
        let (mut ours, mut floor, mut qemu) =
            (Measured::new("microvm"), Measured::new("floor"), Measured::new("qemu"));
        ours.add("init", 1.5);
        ours.add("init", 1.6);
        qemu.add("init", 3.0);
        ours.add("calls", 200.0);
        floor.add("calls", 92.0);
        qemu.add("exits.io_exits", 0.0);
        ours.add("net-send.operations", 10.0);
        qemu.add("net-send.operations", 20.0);
        ours.about = "our VMM".to_owned();
        let figures = Figures { contenders: vec![ours, floor, qemu], ..Figures::default() };
        let text = text(&figures);
        let expected = "\
least of all runs (ours / other)     microvm      floor            qemu

Boot
  exec to guest init                 1.500 s          -  3.000 s (0.50)

Start
  system calls before first KVM_RUN      200  92 (2.17)               -

Exits until init
  port I/O, to the VMM                     -          -               0

Network
  packets, of any size *                  10          -              20

Less is better, except in rows with a *: they explain others. Columns:
  microvm: our VMM
";
        assert_eq!(text, expected);
    }
}
