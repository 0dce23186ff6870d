//! `cargo xtask docs`: the documents and pictures that are made from the code.

use crate::setup::{BROWSER, install, quietly};
use anyhow::{Context, Result};
use overcommit_recording::view::documents;
use std::fmt::Write;
use std::fs;
use std::process::Command;
use testbed::browser::browse;
use testbed::{root, target};

/// The screen of an invented host, as the tests of `top` hold it, and its picture.
const SCREEN: &str = "overcommit-userspace/src/top/screens/list-80x24.txt";
const PICTURE: &str = "docs/top.svg";
/// The report of the same host, by the test that makes its page, and its picture.
const REPORT: &str = "the_picture_of_an_invented_host_has_the_title_of_its_page";
const REPORT_PICTURE: &str = "docs/report.svg";
/// What makes a picture of a page in a browser, and how wide that is.
const PICTURED: &str = include_str!("picture.js");
const WIDTH: u32 = 960;

/// Writes them.
///
/// # Errors
/// The browser cannot be had or fails, or a file cannot be written.
pub(crate) fn run() -> Result<()> {
    fs::create_dir_all(root().join("docs")).context("cannot make docs")?;
    write("docs/columns.md", &documents::columns())?;
    write(PICTURE, &picture()?)?;
    // Last of all: it needs a browser.
    write(REPORT_PICTURE, &report()?)
}

fn write(name: &str, content: &str) -> Result<()> {
    fs::write(root().join(name), content).with_context(|| format!("cannot write {name}"))
}

fn picture() -> Result<String> {
    let screen = fs::read_to_string(root().join(SCREEN));
    Ok(drawn(&screen.with_context(|| format!("cannot read {SCREEN}"))?))
}

/// The upper part of the report, as a browser draws it.
fn report() -> Result<String> {
    install(&[BROWSER])?;
    let work = target().join("docs");
    fs::create_dir_all(&work)?;
    let page = work.join("story.html");
    let _ = fs::remove_file(&page);
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).args(["test", "--package", "overcommit-userspace", "--lib", REPORT]);
    quietly(cargo.env("OVERCOMMIT_STORY_PAGE", &page))?;
    let page = fs::read_to_string(page).context("the test made no page")?;
    let head = "<html lang=\"en\">\n<meta charset=\"utf-8\">";
    let rest = page.split_once(head).context("the page begins in another way")?.1;
    let head = head.replacen('>', " data-theme=\"light\">", 1);
    let pictured = format!("<!doctype html>{head}<script>{PICTURED}</script>{rest}");
    let (dom, console) = browse(&work, &pictured, WIDTH)?;
    let picture =
        dom.split_once("<pre id=\"picture\">").and_then(|(_, rest)| rest.split_once("</pre>"));
    let (picture, _) = picture.with_context(|| format!("the page made no picture: {console}"))?;
    let marks = [("&lt;", "<"), ("&gt;", ">"), ("&nbsp;", "\u{a0}"), ("&amp;", "&")];
    Ok(marks.into_iter().fold(picture.to_owned(), |text, (mark, of)| text.replace(mark, of)))
}

/// A screen of 80 columns as an SVG, in the colours that words have in `top`.
fn drawn(screen: &str) -> String {
    // Characters of two columns have no such width in a browser.
    let is_wide = |c: char| ('\u{2e80}'..).contains(&c);
    // Nor do hostile names, of which the screen is a test, say anything to a reader.
    let is_shown = |line: &&str| !line.contains(is_wide) && !line.contains('<');
    let lines: Vec<&str> = screen.lines().filter(is_shown).collect();
    let height = 24 + 18 * lines.len();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 660 {height}\" role=\"img\" \
         aria-label=\"The screen of overcommit top\">\n\
         <style>text{{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',\
         monospace;white-space:pre;fill:#d7dde4}}.bad{{fill:#ff9166;font-weight:bold}}\
         .warn{{fill:#ecc05e}}.note{{fill:#6cb0ea}}.dim{{fill:#7d8791}}</style>\n\
         <rect width=\"660\" height=\"{height}\" rx=\"6\" fill=\"#14171b\"/>\n"
    );
    for (number, line) in lines.iter().enumerate() {
        let _ = writeln!(
            svg,
            "<text xml:space=\"preserve\" x=\"16\" y=\"{}\">{}</text>",
            30 + 18 * number,
            marked(line)
        );
    }
    svg + "</svg>\n"
}

/// With the words marked that stand out.
fn marked(line: &str) -> String {
    let escaped = line.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    if line.starts_with('─') {
        return format!("<tspan class=\"dim\">{escaped}</tspan>");
    }
    let words = [("THRASHED", "bad"), ("THRASHING", "bad"), ("SLOWED", "warn"), ("CAUSE", "note")];
    let mark = |text: String, (word, class): (&str, &str)| {
        text.replace(word, &format!("<tspan class=\"{class}\">{word}</tspan>"))
    };
    words.into_iter().fold(escaped, mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_is_as_the_screen() {
        let there = fs::read_to_string(root().join(PICTURE)).unwrap_or_default();
        assert!(there == picture().unwrap(), "{PICTURE} is not as the screen: cargo xtask docs");
        assert_eq!(marked("a <b> CAUSE"), "a &lt;b&gt; <tspan class=\"note\">CAUSE</tspan>");
    }
}
