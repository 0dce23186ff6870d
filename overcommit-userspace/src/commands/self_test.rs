//! `overcommit check --self-test`

use crate::commands::FAILED;
use crate::probes::Kernel;
use crate::probes::decide::{Backend, Wanted, refusal};
use crate::probes::host::HostProbe;
use crate::self_test::{Proof, Unit, prove};
use crate::terminal::{print, print_json};
use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table};
use overcommit_recording::format::text::readable;
use overcommit_recording::view::style::bad;
use overcommit_recording::view::{facts, plain_table};
use serde::Serialize;
use std::process::ExitCode;

/// What every backend counted.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    passed: bool,
    backends: Vec<Tested>,
}

#[derive(Serialize)]
struct Tested {
    backend: Backend,
    /// Why it was not tested: the host refuses it.
    refused: Option<String>,
    proofs: Vec<Proof>,
}

/// Tests each backend that this host allows; passed if there is one, and all that they count is
/// right.
///
/// # Errors
/// A backend that the host allows cannot be attached, or the process that faults fails.
pub(super) fn run(json: bool) -> Result<ExitCode> {
    let kernel = Kernel::read().context("no backend works here")?;
    let host = HostProbe::run(Ok(&kernel), &Wanted::Auto.kinds());
    let tested = |backend| {
        let refused = refusal(&host, backend);
        let proofs = match refused {
            Some(_) => Vec::new(),
            None => prove(&kernel, backend).with_context(|| format!("backend {backend}"))?,
        };
        Ok(Tested { backend, refused, proofs })
    };
    let backends = Backend::ALL.into_iter().map(tested).collect::<Result<Vec<_>>>()?;
    let mut proofs = backends.iter().flat_map(|tested| &tested.proofs).peekable();
    let passed = proofs.peek().is_some() && proofs.all(|proof| proof.is_right);
    let report = Report { schema: "overcommit.self-test/1", passed, backends };
    if json {
        print_json(&report)?;
    } else {
        print(&text(&report))?;
    }
    Ok(ExitCode::from(if passed { 0 } else { FAILED }))
}

fn text(report: &Report) -> String {
    let all = report.backends.iter();
    let tested: Vec<&Tested> = all.clone().filter(|tested| tested.refused.is_none()).collect();
    let names: Vec<&str> = tested.iter().map(|tested| tested.backend.name()).collect();
    let mut text = match (report.passed, names.is_empty()) {
        (true, _) => format!("Passed: what {} counts is right.\n", list(&names)),
        (false, true) => format!("{}: this host allows no backend.\n", bad("FAILED")),
        (false, false) => format!("{}: see the rows marked WRONG.\n", bad("FAILED")),
    };
    if !names.is_empty() {
        text.push_str(&format!("\n{}\n", table(&tested).trim_fmt()));
    }
    let refused =
        all.filter_map(|tested| Some((tested.backend.to_string(), tested.refused.clone()?)));
    facts::list(&mut text, "Not tested", &refused.collect::<Vec<_>>());
    text
}

/// One, two, or more.
fn list(names: &[&str]) -> String {
    match names {
        [one] => (*one).to_owned(),
        [others @ .., last] => format!("{} and {last}", others.join(", ")),
        [] => String::new(),
    }
}

fn table(tested: &[&Tested]) -> Table {
    let mut table = plain_table();
    table.set_header(["BACKEND", "FAULTS", "TRUTH", "COUNTED", ""]);
    for tested in tested {
        for (row, proof) in tested.proofs.iter().enumerate() {
            let backend = if row == 0 { tested.backend.name() } else { "" };
            let outcome = if proof.is_right { "right".to_owned() } else { bad("WRONG") };
            let shown = |figure| shown(figure, proof.unit);
            table.add_row([
                backend.to_owned(),
                proof.what.to_owned(),
                truth(proof),
                shown(proof.counted),
                outcome,
            ]);
        }
    }
    for column in table.column_iter_mut().filter(|column| (2..4).contains(&column.index)) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn truth(proof: &Proof) -> String {
    let [least, most] = [proof.least, proof.most].map(|figure| shown(figure, proof.unit));
    match (proof.least, least == most) {
        (_, true) => least,
        (0, _) => format!("at most {most}"),
        _ => format!("{least} to {most}"),
    }
}

fn shown(figure: u64, unit: Unit) -> String {
    match unit {
        Unit::Faults => figure.to_string(),
        Unit::Ns => readable(figure),
    }
}
