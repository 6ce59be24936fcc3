//! What every command that runs a model needs first.

use anyhow::{Result, anyhow};
use kivi_kernels::{Backend, DType, Element, ErrorKind, KernelError};
use kivi_model::chat::ChatTemplate;
use kivi_model::engine::EngineError;
use kivi_model::model::Model;
use kivi_model::source::Source;

use crate::args::TemplateArgs;
use crate::failure::Usage;
use crate::output;

/// Loads the weights; returns their bytes too.
pub fn load<B: Backend>(backend: &B, source: &Source, progress: bool) -> Result<(Model<B>, u64)> {
    let bar = output::bar(progress, "loading the model", "{msg} {bar:30} {bytes}/{total_bytes}");
    let mut weights_bytes = 0;
    let model = Model::load(backend, source, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        weights_bytes = total;
    });
    bar.finish_and_clear();
    Ok((model?, weights_bytes))
}

/// What reports call the device: its name, and the type of activations where there is a choice.
pub fn device<B: Backend>(backend: &B) -> String {
    match B::Act::DTYPE {
        DType::F16 | DType::Bf16 => format!("{} ({})", backend.name(), B::Act::DTYPE.name()),
        _ => backend.name().to_owned(),
    }
}

/// Why there is no engine, with the file at fault or what to ask less of.
pub fn not_made<E: KernelError>(error: EngineError<E>, config_file: &str) -> anyhow::Error {
    match error {
        EngineError::Config(error) => anyhow!("{config_file}: {error}"),
        EngineError::Device(error) if error.kind() == ErrorKind::OutOfMemory => anyhow!(
            "{error}; lower --max-tokens, --max-num-batched-tokens or --kv-bits, or give fewer prompts at a time"
        ),
        other => other.into(),
    }
}

/// The chat template, if one is `wanted`: that of a flag, or of the checkpoint.
pub fn template(args: &TemplateArgs, source: &Source, wanted: bool) -> Result<Option<ChatTemplate>> {
    let unused = [("--system", args.system.is_some()), ("--chat-template", args.chat_template.is_some())];
    if !wanted {
        let flag = unused.iter().find(|(_, given)| *given);
        return flag.map_or(Ok(None), |(flag, _)| Err(Usage(format!("{flag}: needs --chat")).into()));
    }
    let template = match &args.chat_template {
        Some(file) => Some(ChatTemplate::from_file(file, source)?),
        None => ChatTemplate::load(source)?,
    };
    let none = || anyhow!("{}: has no chat template; give one by --chat-template FILE", source.place(""));
    template.ok_or_else(none).map(Some)
}
