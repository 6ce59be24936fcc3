//! Arguments of `plot`.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Results, and where their picture goes.
#[derive(Debug, Args)]
pub struct PlotArgs {
    /// Results of one command, as its --json gives them
    #[arg(value_name = "RESULT", required = true)]
    pub results: Vec<PathBuf>,
    /// Picture to write, SVG or PNG by its ending; or a directory, for an SVG of each kind that the results have
    #[arg(short, long, value_name = "OUT")]
    pub out: PathBuf,
    /// What to show, where the results have several kinds
    #[arg(long, value_name = "KIND")]
    pub kind: Option<PlotKind>,
}

/// A kind of picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlotKind {
    /// bench, inspect: memory against the length of the context
    MemoryContext,
    /// bench: memory against the sequences at a time
    MemoryBatch,
    /// bench: tokens a second and memory against the sequences at a time
    ThroughputBatch,
    /// bench: time of a step against the tokens in the cache
    StepTime,
    /// eval passkey, needle: right answers by length and depth
    Heat,
    /// perplexity: divergence by the place in the window
    KldPosition,
    /// ablate: divergence by setting
    AblateKld,
    /// ablate: perplexity by setting
    AblatePerplexity,
    /// inspect --kv: magnitudes of keys and values
    KvMagnitudes,
}

impl fmt::Display for PlotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}
