//! `--config`: objectives in a TOML file.

use crate::format::text::reason;
use crate::slo::Objective;
use anyhow::{Result, anyhow, ensure};
use serde::Deserialize;
use std::path::Path;

/// What such a file may hold.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    slo: Vec<String>,
}

/// Reads the objectives of a file.
///
/// # Errors
/// It cannot be read, is no TOML, holds something else, or no objective.
pub fn read(path: &Path) -> Result<Vec<Objective>> {
    let text = std::fs::read_to_string(path);
    parse(&text.map_err(|error| anyhow!("cannot read it: {}", reason(&error)))?)
}

fn parse(text: &str) -> Result<Vec<Objective>> {
    let config: Config = toml::from_str(text)?;
    ensure!(!config.slo.is_empty(), "it has no objective; expected slo = [\"OBJECTIVE\", ...]");
    config.slo.iter().map(|text| Objective::parse(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_or_says_where_it_is_wrong() {
        let objectives = parse("slo = [\"stall.share<1%\", \"db:fault.major:p99<2ms\"]").unwrap();
        assert_eq!(objectives.len(), 2);
        let error = |text: &str| format!("{:#}", parse(text).err().unwrap());
        assert!(error("").contains("expected slo = "), "{}", error(""));
        assert!(error("slo = [1]").contains("line 1"), "{}", error("slo = [1]"));
        assert!(error("objectives = []").contains("unknown field"), "{}", error("objectives = []"));
        assert!(error("slo = ['x<1%']").contains("character 1"), "{}", error("slo = ['x<1%']"));
    }
}
