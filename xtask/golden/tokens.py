#!/usr/bin/env python3
"""Writes tokens.json: token ids of many strings, by transformers, of kivi-tiny and of Mistral-7B-v0.3.

    python3 tokens.py --model MODEL [--out DIR] [--data DIR] [--check]

MODEL is the kivi-tiny checkpoint. Mistral's tokenizer is the folder tokenizers/mistral-7b-v0.3-hf of --data (default:
the environment variable KIVI_DATA), and some strings are those of tokenizers/ggml-vocab-llama-spm.gguf.inp there; of
them the file has no text. Without that folder, what the file had is kept.

Of each string the file has, per tokenizer, "COUNT HASH HASH HASH": the number of ids without special tokens, the hash
of these ids, of the ids with special tokens, and of the text that the latter decode to, special tokens left out. A hash
is FNV-1a 64, of ids as little-endian u32 and of texts as UTF-8.
"""

import argparse
import json
import os
import pathlib
import sys
import unicodedata

import transformers
from transformers import AutoTokenizer

MARK = "\n__ggml_vocab_test__\n"


def fnv1a(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 2**64 - 1
    return h


def ranges():
    """Sixteen characters from each of many blocks of Unicode, joined and spaced."""
    starts = [0x20, 0x40, 0x60, 0xA0, 0xC0, 0x100, 0x250, 0x2B0, 0x300, 0x370, 0x400, 0x530, 0x590, 0x600, 0x700, 0x900, 0x980]
    starts += [0xB80, 0xE00, 0xE80, 0x1000, 0x10A0, 0x1100, 0x13A0, 0x1780, 0x1E00, 0x1F00, 0x2000, 0x2020, 0x2060, 0x2070, 0x20A0]
    starts += [0x2100, 0x2190, 0x2200, 0x2300, 0x2460, 0x2500, 0x2580, 0x2600, 0x2700, 0x2800, 0x3000, 0x3040, 0x30A0, 0x3100]
    starts += [0x3130, 0x4E00, 0x9FA0, 0xA000, 0xAC00, 0xE000, 0xF900, 0xFB00, 0xFB50, 0xFE00, 0xFE20, 0xFF00, 0xFFF0, 0x10000]
    starts += [0x10300, 0x1D400, 0x1F1E6, 0x1F300, 0x1F600, 0x1F680, 0x1F900, 0x20000, 0xE0020, 0xF0000, 0x10FFF0]
    for start in starts:
        chars = [chr(c) for c in range(start, start + 16)]
        yield "".join(chars)
        yield " ".join(chars)


def forms():
    """What is written in more than one way: composed, decomposed, compatibility forms."""
    for text in ("café naïve Ångström", "ﬁﬂ ½ ² ℌ ｆｕｌｌ", "각 한글 ㄱㅏ", "क्षि ஸ்ரீ ไม่", "שָׁלוֹם اَلسَّلَامُ"):
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            yield unicodedata.normalize(form, text)


def spaces():
    for n in (1, 2, 3, 4, 5, 8, 15, 16, 17, 33, 100):
        yield " " * n + "x" + " " * n
        yield "\n" * n + "x"
        yield "\t" * n + "x\t"
    for c in "\r\v\f\x1c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\ufeff\u200b\u200d":
        yield f"a{c}b{c}{c}c{c}"
    yield from ("a \n b", "a\r\nb\r\n\r\nc", " \n \n \t", "\n \n", " a  b   c    d ", "\u2581a \u2581 b")


def numbers():
    yield from ("0 1 12 123 1234 12345 123456 1234567", "3.14159 -2,718.28 1e-9 0xFF 1_000", "2026-01-03T04:05:06Z", "٣٤٥ १२३ 一二三 ⅔ ① ²")
    yield from ("1" * n for n in (9, 64, 257))


def code():
    yield "def f(x: int) -> str:\n    return f\"{x!r:>4}\"  # ok\n\n\nclass A(B):\n\tpass\n"
    yield "fn main() { let v: Vec<u8> = (0..=255).collect(); println!(\"{:?}\", &v[1..]); } // ``` ~~~"
    yield "#include <stdio.h>\r\nint main(void)\r\n{\r\n\treturn 0;\r\n}\r\n"
    yield "<p class=\"a\">&lt;b&gt; &amp; \u2018c\u2019</p><!-- d --><br/>"
    yield "SELECT * FROM t WHERE a <> 'b''c' AND d >= 1; -- e"
    yield "{\"a\": [1, 2.5e3, null, true], \"b\\u00e9\": \"\\n\\\\\"}"
    yield "https://example.org/a_b-c?d=%20e&f#g user@example.org ./a/../b ~/c C:\\d"
    yield "$x^2 + \\frac{1}{2}\\alpha_i \\leq \\mathbb{R}$"


def emoji():
    yield from ("🦀🧭🙂", "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇫🇷🇯🇵", "☺︎☺️ ❤️‍🔥 1️⃣", "🦀" * 40, "a🦀b 🦀 c", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f")
    yield from ("e" + "\u0301" * n for n in (1, 2, 20))
    yield "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘"


def specials():
    for token in ("<s>", "</s>", "<unk>", "<pad>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", "<0x0A>", "<0xE2>"):
        yield token
        yield f"a{token}b {token} c{token}"
        yield token * 3
    yield from ("<s", "< s>", "<S>", "<|begin_of_text|", "[ INST ]", "</s></s> <s> x", "<s>\n</s>\n")


def controls():
    yield "".join(map(chr, range(32)))
    yield "".join(map(chr, range(127, 160)))
    yield from ("\0", "a\0b", "\x1b[31mred\x1b[0m", "\x7f", "\ufffd", "\ufffd\ufffd a\ufffd", "\ufffe\uffff", "\u202eabc\u202c")


def runs():
    for text in ("a", "ab", "the ", "-", "=", ".", "é", "漢", "\n", "A", "_ ", "!?"):
        yield text * 300
    yield "".join(chr(97 + i * i % 26) for i in range(2000))
    yield " ".join(chr(97 + i * i % 26) * (i % 9 + 1) for i in range(300))


def words():
    yield from ("", "a", "Hello, world!", " Hello", "Hello ", "I'm you're he'll THEY'VE it'S d'accord", "don\u2019t", "snake_case CamelCase kebab-case UPPER")
    yield from ("Où est le café? Straße Łódź", "Москва — столица", "東京は日本の首都です。", "안녕하세요 세계", "สวัสดีชาวโลก", "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया", "Γειά σου Κόσμε")
    yield from ("...!!!???", "(a)[b]{c}<d>", "\u201ca\u201d \u2018b\u2019 \u00abc\u00bb \u201ed\u201c", "a--b\u2014c\u2013d", "x" + "\u00ad" + "y", "İstanbul ıi ſ ß ẞ")


def own():
    made = [s for part in (words, ranges, forms, spaces, numbers, code, emoji, specials, controls, runs) for s in part()]
    return list(dict.fromkeys(made))


def ids_hash(ids):
    return f"{fnv1a(b''.join(i.to_bytes(4, 'little') for i in ids)):016x}"


def brief(tokenizer, text):
    plain, special = (tokenizer(text, add_special_tokens=add).input_ids for add in (False, True))
    decoded = tokenizer.decode(special, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return f"{len(plain)} {ids_hash(plain)} {ids_hash(special)} {fnv1a(decoded.encode()):016x}"


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, required=True, help="directory of kivi-tiny")
    parser.add_argument("--out", type=pathlib.Path, default=root / "kivi-model/tests/golden")
    parser.add_argument("--data", type=pathlib.Path, default=os.environ.get("KIVI_DATA"))
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    file = args.out / "tokens.json"
    old = json.loads(file.read_text()) if file.exists() else {}
    tiny = AutoTokenizer.from_pretrained(args.model)
    strings = own()
    made = {
        "made_with": f"transformers {transformers.__version__}",
        "strings": strings,
        "kivi-tiny": [brief(tiny, text) for text in strings],
    }
    folder = args.data and args.data / "tokenizers"
    if folder and folder.is_dir():
        mistral = AutoTokenizer.from_pretrained(folder / "mistral-7b-v0.3-hf")
        text = (folder / "ggml-vocab-llama-spm.gguf.inp").read_bytes()
        others = text.decode().split(MARK)
        made["mistral"] = [brief(mistral, text) for text in strings]
        made["others_text"] = f"{fnv1a(text):016x}"
        made["others_kivi-tiny"] = [brief(tiny, text) for text in others]
        made["others_mistral"] = [brief(mistral, text) for text in others]
    else:
        print("tokens.json: Mistral's as it was: --data or KIVI_DATA has no tokenizers", file=sys.stderr)
        made |= {key: old[key] for key in ("mistral", "others_text", "others_kivi-tiny", "others_mistral")}
    if args.check:
        differ = [key for key in made if key != "made_with" and made[key] != old.get(key)]
        if differ:
            raise SystemExit(f"{file}: not what transformers makes now: {', '.join(differ)}")
        print("tokens.json: as made before")
        return
    # Escaped: some strings are made of what an editor would change.
    file.write_text(json.dumps(made, indent=1) + "\n")
    print(f"tokens.json: {len(strings)} strings, {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
