//! Shows pages in a real browser.

use crate::as_child;
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What a browser made of a page, and its console, on which no page says anything.
///
/// # Errors
/// There is no browser, or the page says something there.
pub fn browse(dir: &Path, page: &str, width: u32) -> Result<(String, String)> {
    let file = dir.join("page.html");
    fs::write(&file, page)?;
    let mut browser = Command::new("chromium");
    browser.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--hide-scrollbars",
    ]);
    browser.args([
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]);
    browser.args(["--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom"]);
    browser.arg(format!("--user-data-dir={}", dir.join("browser").display()));
    browser.arg(format!("--window-size={width},1000")).arg(format!("file://{}", file.display()));
    let ended = as_child(&mut browser, Signal::SIGKILL).output()?;
    let console = String::from_utf8_lossy(&ended.stderr).into_owned();
    let said: Vec<&str> = console.lines().filter(|line| line.contains("CONSOLE")).collect();
    ensure!(said.is_empty(), "the browser's console: {said:?}");
    Ok((String::from_utf8_lossy(&ended.stdout).into_owned(), console))
}
