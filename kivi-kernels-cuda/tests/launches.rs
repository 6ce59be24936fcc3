//! Launches overlap on the device, which is right only if every kernel waits for the one before (`wait_for_launch_before` in
//! `cu/kivi.cuh`): first of all, but for what it reads that is settled.

use std::fs;
use std::path::Path;

const WAIT: &str = "wait_for_launch_before();";

/// Names and texts of the sources.
fn sources() -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cu");
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let read = |file: fs::DirEntry| {
        (file.file_name().to_string_lossy().into_owned(), fs::read_to_string(file.path()).unwrap())
    };
    files.map(read).collect()
}

/// The kernels of a source: what is behind `__global__` up to the body, and what the body begins with.
fn kernels(text: &str) -> Vec<(&str, &str)> {
    text.split("__global__").skip(1).map(|kernel| kernel.split_once('{').unwrap()).collect()
}

/// Whether a function waits in all its threads: as a statement of its own body, with no way out before.
fn waits(body: &str) -> bool {
    let body = format!("{}\n", body.split("\n}").next().unwrap_or_default());
    body.split_once(&format!("\n    {WAIT}\n")).is_some_and(|(before, _)| !before.contains("return"))
}

#[test]
fn every_kernel_waits_for_the_launch_before_it_first_of_all() {
    let mut found = 0;
    for (file, text) in sources() {
        for (head, body) in kernels(&text) {
            let body = body.trim_start();
            // Products and norms ask for weights before they wait, and in a recorded step attention for packed tokens and
            // appending for where rows go.
            let first = match file.as_str() {
                "gemv.cu" => "gemv<",
                "norm.cu" if head.contains("layer_norm_packs") => "Pack<float> weight",
                "norm.cu" if head.contains("_packs") => "norm_packs<",
                "decode.cu" => "// What is settled",
                "append.cu" if !head.contains(" append(") => "wait_unless_settled(p);",
                _ => WAIT,
            };
            assert!(body.starts_with(first), "{file}:{head}begins with {:?}", body.lines().next());
            found += 1;
        }
    }
    assert!(found > 30, "{found} kernels");
}

/// What a function that waits does before.
fn before_the_wait(file: &str, function: &str) -> String {
    let sources = sources();
    let (_, text) = sources.iter().find(|(name, _)| name == file).unwrap();
    let (_, body) = text.split_once(function).unwrap();
    assert!(waits(body), "{body}");
    body.split_once(WAIT).unwrap().0.to_owned()
}

#[test]
fn a_product_waits_before_it_reads_what_a_launch_writes() {
    let before = before_the_wait("gemv.cu", "void gemv(const GemvParams& p) {");
    let early = "if (p.settled && part.deep()) {\n        part.ask();\n    }";
    assert!(before.contains(early) && before.matches("part.").count() == 2, "{before}");
}

#[test]
fn a_norm_waits_before_it_reads_what_a_launch_writes() {
    let early = "if (p.settled) {\n        each_pack(p.cols, ask);\n    }";
    let (weight, bias) = ("weight[k] = read(p.weight + j)", "bias[k] = read(p.bias + j)");
    let norms = [
        ("void norm_packs(const NormParams& p) {", vec![weight]),
        ("void layer_norm_packs(NormParams p) {", vec![weight, bias]),
    ];
    for (norm, asked) in norms {
        let before = before_the_wait("norm.cu", norm);
        assert!(before.contains(early) && asked.iter().all(|ask| before.contains(ask)), "{before}");
        let calls = ["read(", "each_pack("].map(|call| before.matches(call).count());
        assert_eq!(calls, [asked.len(), 1], "{before}");
    }
}

/// What begins a function that waits at once unless something is settled.
const UNLESS_SETTLED: &str = "if (!p.settled) {\n        wait_for_launch_before();\n    }\n";

#[test]
fn attention_waits_before_it_reads_what_a_launch_writes() {
    let (_, text) = sources().into_iter().find(|(name, _)| name == "decode.cu").unwrap();
    let (_, body) = text.split_once("decode(const __grid_constant__ DecodeParams p) {").unwrap();
    assert!(waits(body), "also a block that has nothing to do: {body}");
    let (before, after) = body.split_once(UNLESS_SETTLED).unwrap();
    assert!(!before.contains("p."), "{before}");
    // The plan, and the first packed tiles of its spans; then queries, rows and all that is written.
    let (early, late) = after.split_once(WAIT).unwrap();
    let asked = ["p.plan[blockIdx.x].share", "p.attend.cache, sh"].map(|x| early.matches(x).count());
    assert_eq!((asked, early.matches("p.").count()), ([1, 1], 2), "{early}");
    assert!(
        early.contains("plan(p, sh") && early.contains("copies.restart(") && !early.contains("run_span"),
        "{early}"
    );
    for (name, text) in sources().iter().filter(|(name, _)| name == "plan.cuh" || name == "copies.cuh") {
        assert!(["attend.q", "attend.out", ".ring", "partials"].iter().all(|x| !text.contains(x)), "{name}");
    }
    assert!(late.contains("run_span("), "{late}");
}

#[test]
fn appending_waits_before_it_reads_rows_and_writes() {
    let (_, text) = sources().into_iter().find(|(name, _)| name == "append.cu").unwrap();
    let (_, unless_settled) = text.split_once("void wait_unless_settled(const AppendParams& p) {").unwrap();
    assert!(unless_settled.trim_start().starts_with(UNLESS_SETTLED), "{unless_settled}");
    let (_, ask_due) = text.split_once("void ask_due(").unwrap();
    let ask_due = ask_due.split("\n}").next().unwrap();
    assert!(ask_due.matches("ring").count() == 1 && ask_due.contains(" ask(step.source.ring"), "{ask_due}");
    let functions = ["append_side(const", "append_step(", "append_rows(", "append_due(AppendParams"];
    for function in functions {
        let before = before_the_wait("append.cu", function);
        let writes = ["append_few", "append_due_keys", "store_", "pack_", " = __ldcs", ".fresh"];
        assert!(writes.iter().all(|write| !before.contains(write)), "{function}: {before}");
    }
}

#[test]
fn what_does_not_wait_is_found() {
    let kernel =
        |body: &str| format!("extern \"C\" __global__ void __launch_bounds__(8) f(P p) {{ {body} }}");
    let begins = |text: &str| kernels(text)[0].1.trim_start().starts_with(WAIT);
    assert!(begins(&kernel("wait_for_launch_before(); p.x[0] = 1;")));
    assert!(!begins(&kernel("if (p.x) { return; } wait_for_launch_before();")));
    assert!(waits("\n    f();\n    wait_for_launch_before();\n    g();\n}\n"));
    assert!(!waits("\n    if (x) {\n        wait_for_launch_before();\n    }\n}\n"));
    assert!(!waits("\n    if (x) {\n        return;\n    }\n    wait_for_launch_before();\n}\n"));
    assert!(!waits("\n    f();\n}\nvoid g() {\n    wait_for_launch_before();\n}\n"));
}
