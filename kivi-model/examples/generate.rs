//! A model with a 2-bit cache in some thirty lines.
//!
//! ```sh
//! cargo run --release -p kivi-model --example generate -- DIR "Once upon a time"
//! ```

use std::error::Error;
use std::ops::ControlFlow;

use kivi_kernels_ref::Cpu;
use kivi_model::engine::{Engine, EngineConfig, Request};
use kivi_model::generate::{Progress, TextRequest, generate};
use kivi_model::model::Model;
use kivi_model::source::Source;
use kivi_model::tokenizer::Tokenizer;
use kivi_quant::{Bits, GroupSize, KiviConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let source = Source::Dir(args.next().ok_or("give the directory of a checkpoint")?.into());
    let prompt = args.next().ok_or("give a prompt")?;

    let backend = Cpu::<f32>::new();
    let model = Model::load(&backend, &source, &mut |_, _| {})?;
    let tokenizer = Tokenizer::load(&source, model.config().vocab_size)?;
    let cache = KiviConfig::new(Bits::B2, Bits::B2, GroupSize::G32, 32)?;
    let (max_context, max_batched_tokens) = (2048, 512);
    let cache = cache.into();
    let sizes =
        EngineConfig { cache, max_context, max_seqs: 1, max_batched_tokens, pool_tokens: max_context };
    let mut engine = Engine::new(&backend, &model, sizes)?;

    let request = Request::new(tokenizer.encode(&prompt, true)?, 100);
    let texts = vec![TextRequest { request, stop: Vec::new() }];
    let texts = generate(&mut engine, &tokenizer, texts, &mut |progress| {
        if let Progress::Text { text, .. } = progress {
            print!("{text}");
        }
        ControlFlow::Continue(())
    })?;
    let used = texts[0].cache.used;
    println!("\n{} bytes of cache; 16 bits would take {}", used.used(), used.fp16);
    Ok(())
}
