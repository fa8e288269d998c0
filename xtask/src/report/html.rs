//! The report as one page that needs nothing else: tables, and bars as inline SVG.

use super::figures::{Direction, Figures, GROUPS, Row};
use super::table::cells;
use super::timeline::Timeline;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}\
    table{border-collapse:collapse;width:100%}th,td{padding:.25em .6em;text-align:right;border-bottom:1px solid #ddd;\
    vertical-align:top}th:first-child,td:first-child{text-align:left}small{color:#666}svg{display:block}\
    pre{background:#f6f6f6;padding:.6em;overflow:auto}.bad{color:#b00}";

/// One colour for each VMM, in order; beyond, they repeat.
const COLOURS: [&str; 6] = ["#1668b8", "#9aa4ad", "#d9822b", "#7a9c2f", "#8e5bb5", "#c2455b"];

/// The page. `about` says how and where the figures were taken.
pub fn page(figures: &Figures, timeline: &Timeline, about: &str) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>VMM report</title>\
         <style>{STYLE}</style></head><body>\n<h1>VMM report</h1>\n<p>{}</p>\n",
        escape(about)
    );
    for failure in &figures.failures {
        out.push_str(&format!("<pre class=\"bad\">{}</pre>\n", escape(failure)));
    }
    out.push_str("<h2>Columns</h2>\n<dl>");
    for measured in &figures.contenders {
        out.push_str(&format!(
            "<dt><b>{}</b>: {}</dt><dd><small><code>{}</code></small></dd>\n",
            escape(&measured.name),
            escape(&measured.about),
            escape(&measured.command)
        ));
    }
    out.push_str(
        "</dl>\n<p><small>What is in braces is the same for all: cargo xtask report --help</small></p>\n",
    );
    for group in GROUPS {
        let rows: String = group.rows.iter().filter_map(|row| table_row(figures, row)).collect();
        if !rows.is_empty() {
            let names: String = figures
                .contenders
                .iter()
                .map(|measured| format!("<th>{}</th>", escape(&measured.name)))
                .collect();
            out.push_str(&format!(
                "<h2>{}</h2>\n<p><small>{}</small></p>\n<table><tr><th></th><th></th>{names}<th></th></tr>\n{rows}</table>\n",
                escape(group.title),
                escape(group.how),
            ));
        }
    }
    if !timeline.spans.is_empty() {
        out.push_str("<h2>From exec to the guest, microvm</h2>\n");
        out.push_str(&format!("<p><small>{}</small></p>\n", escape(&timeline.about(figures))));
        out.push_str(&timeline_svg(timeline));
    }
    out.push_str("</body></html>\n");
    out
}

fn table_row(figures: &Figures, row: &Row) -> Option<String> {
    let cells = cells(figures, row)?;
    let columns: String = cells
        .iter()
        .map(|cell| {
            let ratio = cell.ratio.map(|ratio| format!("<br><small>ours / this: {ratio:.2}</small>"));
            format!("<td>{}{}</td>", escape(&cell.text), ratio.unwrap_or_default())
        })
        .collect();
    Some(format!(
        "<tr><td>{}</td><td><small>{}</small></td>{columns}<td style=\"width:14em\">{}</td></tr>\n",
        escape(row.title),
        match row.direction {
            Direction::Less => "less is better",
            Direction::Neither => "explains other rows",
        },
        bars(figures, row)
    ))
}

/// A bar for each VMM's least value, and a tick for each value.
fn bars(figures: &Figures, row: &Row) -> String {
    const WIDTH: f64 = 200.0;
    const HEIGHT: usize = 9;
    let all = figures.contenders.iter().filter_map(|measured| measured.values.get(row.metric)).flatten();
    let most = all.copied().fold(0.0, f64::max);
    let x = |value: f64| if most > 0.0 { value / most * WIDTH } else { 0.0 };
    let mut shapes = String::new();
    for (index, (measured, colour)) in figures.contenders.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let y = index * (HEIGHT + 2);
        let Some(least) = measured.least(row.metric) else { continue };
        shapes.push_str(&format!(
            "<rect x=\"0\" y=\"{y}\" width=\"{:.1}\" height=\"{HEIGHT}\" fill=\"{colour}\"><title>{}: {}</title></rect>",
            x(least).max(1.0),
            escape(&measured.name),
            escape(&row.unit.show(least)),
        ));
        for value in measured.values.get(row.metric).into_iter().flatten() {
            shapes.push_str(&format!(
                "<path d=\"M{0:.1} {y}v{HEIGHT}\" stroke=\"#222\" stroke-width=\"0.7\"/>",
                x(*value)
            ));
        }
    }
    let height = figures.contenders.len() * (HEIGHT + 2);
    format!("<svg width=\"{}\" height=\"{height}\" role=\"img\">{shapes}</svg>", WIDTH + 2.0)
}

/// The VMM's spans to scale, and below them the instants as a list: the guest's are hundreds of times later.
fn timeline_svg(timeline: &Timeline) -> String {
    const WIDTH: f64 = 700.0;
    const ROW: usize = 20;
    let end = timeline.spans.iter().map(|span| span.end).fold(1.0, f64::max);
    let mut shapes = String::new();
    for (index, (span, colour)) in timeline.spans.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let (y, start) = (index * ROW, span.start / end * WIDTH);
        let width = ((span.end - span.start) / end * WIDTH).max(1.0);
        shapes.push_str(&format!(
            "<rect x=\"{start:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{}\" font-size=\"12\">{} {:.0} us</text>",
            ROW - 4,
            WIDTH + 10.0,
            y + ROW - 8,
            escape(&span.name),
            span.end - span.start,
        ));
    }
    let instants: String = timeline
        .instants
        .iter()
        .map(|(name, at)| format!("<li>{}: {:.1} ms after the exec</li>", escape(name), at / 1e3))
        .collect();
    let height = timeline.spans.len() * ROW;
    format!("<svg width=\"1000\" height=\"{height}\" role=\"img\">{shapes}</svg>\n<ul>{instants}</ul>\n")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::figures::Measured;
    use super::*;

    /// Every element that is opened is closed, in order.
    fn assert_balanced(page: &str) {
        let mut open = Vec::new();
        for tag in page.split('<').skip(1).map(|rest| rest.split('>').next().unwrap()) {
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "{tag}");
            } else if !tag.ends_with('/') && !["!DOCTYPE", "meta", "br"].contains(&name) {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn the_page_is_whole_and_needs_nothing_else() {
        let (mut ours, mut other) = (Measured::new("ours"), Measured::new("a<b>&\"c\""));
        for value in [1.5, 1.7] {
            ours.add("init", value);
            other.add("init", 2.0 * value);
        }
        ours.add("exits.io_exits", 0.0);
        (ours.about, ours.command) = ("our own".to_owned(), "ours --fast".to_owned());
        ours.add("net-send.operations", 3.0);
        ours.add("first-run", 0.25);
        let figures = Figures {
            contenders: vec![ours, other],
            failures: vec!["other: <script>".to_owned()],
            ..Figures::default()
        };
        let timeline = Timeline::parse("microvm: layout from 1 to 2 us\nmicrovm: vcpu0 after 5 us\n", None);
        let page = page(&figures, &timeline, "taken by \"hand\"");
        assert_balanced(&page);
        assert!(page.contains("ours / this: 0.50") && page.contains("first KVM_RUN of vcpu0"), "{page}");
        for explained in
            ["our own", "ours --fast", "less is better", "explains other rows", "the table's is of others"]
        {
            assert!(page.contains(explained), "{explained}: {page}");
        }
        assert!(page.contains("a&lt;b&gt;&amp;&quot;c&quot;") && !page.contains("<script"), "{page}");
        for outside in ["http:", "https:", "src=", "href=", "url(", "NaN", "inf"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
