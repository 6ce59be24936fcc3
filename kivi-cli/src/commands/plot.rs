//! `plot`: pictures of what other commands measured.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::args::PlotArgs;
use crate::failure::Usage;
use crate::plot::drawing::Format;
use crate::plot::input::Input;
use crate::{format, output, plot};

/// Runs the command: writes the pictures, and prints their names.
pub fn run(args: &PlotArgs) -> Result<()> {
    let out = Out::new(&args.out)?;
    let inputs = args.results.iter().map(|path| Input::read(path)).collect::<Result<Vec<_>>>()?;
    let kinds = match out {
        Out::Dir(_) if args.kind.is_none() => plot::applicable(&inputs)?,
        _ => vec![plot::choose(&inputs, args.kind)?],
    };
    // All are drawn before the first is written.
    let drawings = kinds.iter().map(|kind| plot::draw(*kind, &inputs)).collect::<Result<Vec<_>>>()?;
    for (kind, drawing) in kinds.iter().zip(drawings) {
        let (path, format) = match &out {
            Out::File(path, format) => (path.clone(), *format),
            Out::Dir(dir) => (dir.join(format!("{kind}.svg")), Format::Svg),
        };
        drawing.write(&path, format)?;
        output::write(&(format::path(&path) + "\n"))?;
    }
    Ok(())
}

/// Where pictures go.
enum Out {
    File(PathBuf, Format),
    Dir(PathBuf),
}

impl Out {
    /// What was asked for, if something can be written there.
    fn new(path: &Path) -> Result<Self> {
        let name = format::path(path);
        if path.is_dir() {
            return Ok(Self::Dir(path.to_owned()));
        }
        let Some(format) = Format::of(path) else {
            return Err(Usage(format!(
                "--out {name}: expected a name that ends in .svg or .png, or a directory"
            ))
            .into());
        };
        match path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.is_dir()) {
            Some(dir) => bail!("--out {name}: no such directory: {}", format::path(dir)),
            None => Ok(Self::File(path.to_owned(), format)),
        }
    }
}
