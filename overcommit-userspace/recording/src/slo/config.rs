//! `--config`: objectives in a TOML file.

use crate::slo::Objective;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// What such a file may hold.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    slo: Vec<String>,
}

/// The objectives of such a file.
///
/// # Errors
/// It is no TOML, holds something else, or no objective.
pub fn parse(text: &str) -> Result<Vec<Objective>> {
    let config = toml::from_str(text);
    let config: Config = config.context("expected a TOML file with slo = [\"OBJECTIVE\", ...]")?;
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
