//! No link between the pages of the repository is dead, neither where they lie nor where rustdoc shows them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{Context, Error, Result, paths, process};

/// Where the repository's files are for those who read them elsewhere.
const PUBLISHED: [&str; 2] =
    ["https://github.com/ossature/ossature/blob/main/", "https://github.com/ossature/ossature/tree/main/"];

/// Fails with every link in the repository's Markdown that leads nowhere.
///
/// # Errors
/// There is such a link, or git does not list the files.
pub fn markdown() -> Result<()> {
    let mut git = process::command("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard", "*.md"]).current_dir(paths::root());
    let files: Vec<PathBuf> = process::text(&mut git)?.lines().map(PathBuf::from).collect();
    dead_in_markdown(&paths::root(), &files)
}

fn dead_in_markdown(root: &Path, files: &[PathBuf]) -> Result<()> {
    let mut dead = Vec::new();
    for file in files.iter().filter(|file| root.join(file).exists()) {
        let text = fs::read_to_string(root.join(file)).context(file.display())?;
        for link in links(&text) {
            if let Err(why) = follow(root, file, &text, &link) {
                dead.push(format!("{}: {link}: {why}", file.display()));
            }
        }
    }
    report(dead)
}

fn report(dead: Vec<String>) -> Result<()> {
    if dead.is_empty() { Ok(()) } else { Err(Error::new(format!("dead links:\n  {}", dead.join("\n  ")))) }
}

/// The targets of a page's links: those in the text, and those that are defined at a line's start. Not those in code.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            if let Some((_, target)) = line.strip_prefix('[').and_then(|line| line.split_once("]: ")) {
                links.push(target.trim().to_owned());
            }
            // Every second piece is in backticks; a link's text may be.
            let plain: String = line.split('`').step_by(2).collect();
            let targets = plain.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
            links.extend(targets.map(|(target, _)| target.to_owned()));
        }
    }
    links
}

fn follow(root: &Path, file: &Path, text: &str, link: &str) -> std::result::Result<(), &'static str> {
    let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
    let published = PUBLISHED.iter().find_map(|start| target.strip_prefix(start));
    let is_elsewhere = published.is_none() && (target.contains("://") || target.contains("::"));
    if is_elsewhere {
        return Ok(());
    }
    let path = match published {
        Some(path) => root.join(path),
        None if target.is_empty() => root.join(file),
        None if is_shown_by_rustdoc(root, file) => {
            return Err(
                "rustdoc shows this page elsewhere; write the address at which the file is published",
            );
        }
        None => root.join(file).parent().unwrap_or(root).join(target),
    };
    if !path.exists() {
        return Err("there is no such file");
    }
    if anchor.is_empty() || path.extension().is_none_or(|it| it != "md") {
        return Ok(());
    }
    let other =
        if target.is_empty() { text.to_owned() } else { fs::read_to_string(&path).unwrap_or_default() };
    if anchors(&other).contains(anchor) { Ok(()) } else { Err("there is no such heading") }
}

/// A README of a crate, and what the facade includes.
fn is_shown_by_rustdoc(root: &Path, file: &Path) -> bool {
    let folder = root.join(file).parent().unwrap_or(root).to_path_buf();
    let is_readme =
        file.file_name().is_some_and(|name| name == "README.md") && folder.join("Cargo.toml").exists();
    is_readme || file == Path::new("docs/serving.md")
}

/// The anchors of a page's headings, as GitHub and rustdoc make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// What a search in the facade's documentation has to find, as the page that it leads to.
const PAGES: &[&str] = &[
    "vmm/machine/struct.Machine.html",
    "vmm/machine/struct.MachineBuilder.html",
    "vmm/struct.Kvm.html",
    "bus/trait.Device.html",
    "virtio/struct.VirtioMmio.html",
    "virtio/testing/struct.TestDriver.html",
    "legacy/struct.Serial.html",
    "block/struct.RawFile.html",
    "memory/struct.Ram.html",
    "boot/enum.ImageSource.html",
    "rust_vmm/index.html",
    "serving/index.html",
];

/// Fails unless the documentation of all crates shows their items in the facade, too, and the pages that are written by
/// hand lead to pages.
///
/// # Errors
/// As said.
pub fn documentation() -> Result<()> {
    let facade = paths::target().join("doc/ossature");
    let missing = PAGES.iter().filter(|page| !facade.join(page).exists());
    let mut dead: Vec<String> = missing.map(|page| format!("ossature/{page}: it is not there")).collect();
    for page in ["index.html", "serving/index.html"] {
        let page = facade.join(page);
        let html = fs::read_to_string(&page).context(page.display())?;
        dead.extend(dead_in_html(&html, page.parent().unwrap_or(&facade)));
    }
    report(dead)
}

fn dead_in_html(html: &str, folder: &Path) -> Vec<String> {
    let targets = html.split("href=\"").skip(1).filter_map(|rest| rest.split_once('"'));
    let local = targets.map(|(target, _)| target.split('#').next().unwrap_or(target));
    // A script of rustdoc's own has a link in a template.
    let local =
        local.filter(|target| !target.is_empty() && !target.contains("://") && !target.contains("${"));
    local.filter(|target| !folder.join(target).exists()).map(|target| format!("{target}: no page")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x7_no_page_of_the_repository_has_a_dead_link() {
        markdown().unwrap_or_else(|error| panic!("{error}"));
    }

    #[test]
    fn what_is_dead_is_named_and_code_is_no_link() {
        let root = std::env::temp_dir().join(format!("ossature-links-{}", std::process::id()));
        fs::create_dir_all(root.join("docs")).unwrap();
        fs::create_dir_all(root.join("crate")).unwrap();
        let write = |file: &str, text: &str| fs::write(root.join(file), text).unwrap();
        write("crate/Cargo.toml", "");
        write("docs/b.md", "# One `heading`, of two\n");
        write(
            "docs/a.md",
            "[b](b.md) [`b`](../docs/b.md#one-heading-of-two) [c](c.md) [d](b.md#two) `[e](e.md)`\n\
             ```\n[f](f.md)\n```\n[x](https://example.org/none) [y](#z)\n[g]: g.md\n",
        );
        write(
            "crate/README.md",
            "[a](../docs/a.md) [b](https://github.com/ossature/ossature/blob/main/docs/b.md)\n\
             [c](https://github.com/ossature/ossature/blob/main/docs/c.md) [d](crate::d)\n",
        );
        let error = dead_in_markdown(&root, &["docs/a.md".into(), "crate/README.md".into()]).unwrap_err();
        let dead: Vec<&str> = error.message.lines().skip(1).map(str::trim).collect();
        let expected = [
            "docs/a.md: c.md: there is no such file",
            "docs/a.md: b.md#two: there is no such heading",
            "docs/a.md: #z: there is no such heading",
            "docs/a.md: g.md: there is no such file",
            "crate/README.md: ../docs/a.md: rustdoc shows this page elsewhere; write the address at which the file is \
             published",
            "crate/README.md: https://github.com/ossature/ossature/blob/main/docs/c.md: there is no such file",
        ];
        assert_eq!(dead, expected);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_page_that_rustdoc_has_not_made_is_missed() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let html = r##"<a href="#x"> <a href="src/lib.rs#L1"> <a href="https://example.org"> <a href="a/${f}"> \
            <a href="docs/a.md">"##;
        assert_eq!(dead_in_html(html, here), ["docs/a.md: no page"]);
    }
}
