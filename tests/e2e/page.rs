//! report.html in a real browser: drawn, without an error, and inert.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use testbed::browser::browse;
use testbed::qemu::Vm;
use testbed::record::Recording;
use testbed::results::rows;
use testbed::squeeze::Squeeze;
use testbed::{PATIENCE, await_some, overcommit, root, run};

pub(crate) const TESTS: Tests = &[
    ("a_page_is_drawn_in_a_browser", drawn),
    ("a_page_of_hostile_names_is_inert", hostile),
    ("a_comparison_is_drawn_in_a_browser", compared),
];

/// Looks at the page once it is drawn, uses what can be used, and notes what came of it where the
/// browser prints it.
const LOOK: &str = "<script>
addEventListener('error', (e) => { document.documentElement.dataset.thrown = e.message; });
const wait = setInterval(() => {
  const noted = document.documentElement.dataset, $$ = (s) => [...document.querySelectorAll(s)];
  if (!noted.ready && !noted.error) return;
  clearInterval(wait);
  const isDrawn = (c) => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size > 2;
  const plots = $$('.plot').filter((plot) => plot.querySelector('canvas'));
  noted.plots = plots.length;
  noted.empty = plots.filter((plot) => !isDrawn(plot.querySelector('canvas'))).map((plot) => plot.id).join(' ');
  const key = (of, name) => of.dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true }));
  const change = (id, value) => { const of = document.getElementById(id); of.value = value; of.dispatchEvent(new Event('change')); };
  change('metric', 'fault.minor');
  change('cvm', '0');
  const cells = () => $$('#vmt tbody td').map((cell) => cell.textContent).join('|');
  const taken = () => $$('.mx td').map((cell) => cell.textContent).join('|');
  noted.whole = cells();
  noted.taken = taken();
  change('to', '1');
  noted.part = cells();
  noted.takenInPart = taken();
  const to = document.getElementById('to');
  change('to', to.options[to.options.length - 1].value);
  noted.again = cells();
  change('cmp', '0');
  $$('#vmt thead button').forEach((button) => button.click());
  document.getElementById('theme').click();
  const heat = document.querySelector('#heats .plot');
  key(heat, 'ArrowRight');
  key(heat, 'Enter');
  key(heat, 'Escape');
  noted.moment = $$('#heats .sec').length;
  const filter = document.getElementById('filter');
  filter.value = 'no VM has such a name';
  filter.dispatchEvent(new Event('input'));
  noted.rows = $$('#vmt tbody tr').length;
  noted.filtered = $$('#vmt tbody tr').filter((row) => !row.hidden).length;
  noted.injected = $$('main script, b.injected, img').length;
  noted.looked = 1;
}, 20);
</script>";

/// What it noted of a page, as its last state has it.
fn look(dir: &Path, page: &str, width: u32) -> Result<String> {
    let page = page.replace("</html>", &format!("{LOOK}</html>"));
    let (dom, console) = browse(dir, &page, width)?;
    let start = dom.find("<html").with_context(|| format!("no page; {console}"))?;
    let end = dom[start..].find('>').context("no page")?;
    let noted = dom[start..start + end].to_owned();
    ensure!(noted.contains("data-looked=\"1\""), "it was not drawn: {noted}; {console}");
    ensure!(!noted.contains("data-error") && !noted.contains("data-thrown"), "{noted}");
    Ok(noted)
}

fn noted<'a>(of: &'a str, name: &str) -> Result<&'a str> {
    let rest =
        of.split_once(&format!("data-{name}=\"")).with_context(|| format!("no {name}: {of}"))?;
    Ok(rest.1.split('"').next().unwrap_or_default())
}

/// Waits for two intervals of a second: a mark parts what lies in different ones.
fn await_seconds(folder: &Path) -> Result<()> {
    let intervals = || Ok::<_, anyhow::Error>(rows(folder, "host.csv")?.len());
    let before = intervals()?;
    await_some("intervals", PATIENCE, || Ok((intervals()? >= before + 2).then_some(())))
}

fn drawn() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let squeeze = Squeeze::new()?;
    let mut vm = Vm::start(&squeeze.config("squeezed"))?;
    let folder = dir.path().join("run");
    let recording = Recording::start(&folder, ["--slow-faults", "10us"])?;
    vm.await_majors(2_000)?;
    await_seconds(&folder)?;
    run(Command::new(overcommit()).args(["mark"]).arg(&folder).arg("steady, <b>\"1\"</b>"))?;
    vm.await_majors(2_000)?;
    await_seconds(&folder)?;
    vm.stop()?;
    let folder = recording.end()?;
    let page = fs::read_to_string(folder.join("report.html"))?;
    let loads =
        ["src=", "href=\"http", "@import", "url("].into_iter().find(|what| page.contains(what));
    ensure!(loads.is_none(), "it loads something: {loads:?}");
    for (width, theme) in [(1_280, "light"), (1_280, "dark"), (520, "light")] {
        let page = page.replacen(
            "<html lang=\"en\">",
            &format!("<html lang=\"en\" data-theme=\"{theme}\">"),
            1,
        );
        let of = look(dir.path(), &page, width)?;
        // Host, causes, a map and percentiles.
        ensure!(noted(&of, "plots")?.parse::<u32>()? >= 6, "{of}");
        ensure!(noted(&of, "empty")?.is_empty(), "{of}");
        ensure!(noted(&of, "moment")? == "1" && noted(&of, "injected")? == "0", "{of}");
        // A part differs from the whole, which comes back as the summary has it.
        ensure!(noted(&of, "part")? != noted(&of, "whole")?, "{of}");
        ensure!(noted(&of, "again")? == noted(&of, "whole")?, "{of}");
        // The spans together are as the summary has it.
        let taken = noted(&of, "taken")?;
        ensure!(taken == printed_matrix(&page) && taken != noted(&of, "taken-in-part")?, "{of}");
        ensure!(noted(&of, "filtered")? == "0", "{of}");
    }
    // The same from the command, also of a part.
    let out = dir.path().join("part.html");
    run(Command::new(overcommit())
        .arg("report")
        .arg(&folder)
        .args(["--format", "html", "--to"])
        .arg("steady, <b>\"1\"</b>")
        .arg("--out")
        .arg(&out))?;
    let of = look(dir.path(), &fs::read_to_string(&out)?, 1_280)?;
    ensure!(noted(&of, "empty")?.is_empty(), "{of}");
    Ok(())
}

/// What stands in the cells of the matrix before the page's script runs.
fn printed_matrix(page: &str) -> String {
    let table = page.split_once("<table class=\"mx\">").map_or("", |(_, rest)| rest);
    let table = table.split("</table>").next().unwrap_or_default();
    let cells = table.split("<td").skip(1).filter_map(|cell| cell.split(['>', '<']).nth(1));
    cells.collect::<Vec<_>>().join("|")
}

const HOSTILE: &str = r#"</script><b class='injected'>x</b><img src=x onerror='document.title=1'><script>throw 1</script>"#;

/// A recording of which a VM is called so.
fn hostile_recording(dir: &Path) -> Result<PathBuf> {
    let known = root().join("overcommit-userspace/recording/golden/now");
    let folder = dir.join("known");
    run(Command::new("cp").arg("-r").arg(known).arg(&folder))?;
    let file = folder.join("run.json");
    let hostile = fs::read_to_string(&file)?.replace("\"=db\"", &serde_json::to_string(HOSTILE)?);
    ensure!(hostile.contains("injected"), "no name was replaced");
    fs::write(&file, hostile)?;
    Ok(folder)
}

/// The comparison of two recordings has both in each plot, and runs nothing.
fn compared() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = hostile_recording(dir.path())?;
    let out = dir.path().join("compared.html");
    let mut compare = Command::new(overcommit());
    compare.arg("compare").args([&folder, &folder]);
    run(compare.args(["--format", "html", "--out"]).arg(&out))?;
    let page = fs::read_to_string(&out)?;
    let (dom, _) = browse(dir.path(), &page, 1_280)?;
    for side in ["before", "after"] {
        let curves = dom.matches(&format!("<polyline class=\"{side}\"")).count();
        let plots = dom.matches("<figure>").count();
        ensure!(plots > 0 && curves == plots, "{curves} curves of {plots} plots: {dom}");
    }
    ensure!(dom.contains("&lt;b class="), "the name is not shown: {dom}");
    let injected = ["<b class", "<img", "<script"].into_iter().find(|tag| dom.contains(tag));
    ensure!(injected.is_none(), "{injected:?} in {dom}");
    Ok(())
}

fn hostile() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = hostile_recording(dir.path())?;
    let out = dir.path().join("known.html");
    let _ = Command::new(overcommit())
        .arg("report")
        .arg(&folder)
        .args(["--format", "html", "--out"])
        .arg(&out)
        .status()?;
    let page = fs::read_to_string(&out)?;
    ensure!(page.contains("injected"), "the name is not shown");
    let of = look(dir.path(), &page, 1_280)?;
    ensure!(noted(&of, "injected")? == "0" && noted(&of, "rows")? == "2", "{of}");
    Ok(())
}
