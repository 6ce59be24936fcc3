#!/usr/bin/env python3
"""Writes chat.json: what Jinja2 makes of chat templates, in the environment of transformers' apply_chat_template.

    python3 chat.py [--out DIR] [--data DIR] [--check]

Own templates (kivi-model/tests/chat_templates) have their whole texts in the file. Templates of others are in the
folder chat_templates of --data (default: the environment variable KIVI_DATA); of these the file has a hash of the
template, and of each rendering its hash and length. Without that folder, what the file had is kept.

A hash is FNV-1a 64 of UTF-8. Of each rendering the file says "HASH LENGTH" (bytes of UTF-8), "refuses" if the template
called raise_exception, "fails" for any other error.
"""

import argparse
import datetime
import json
import os
import pathlib
import sys

import jinja2
import transformers
from transformers.utils import chat_template_utils

NOW = datetime.datetime(2026, 1, 3, 4, 5, 6)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def message(role, content, **more):
    return {"role": role, "content": content, **more}


SYSTEM = message("system", "Answer in one line.\nBe kind.")
HELLO = message("user", "Hello! Who are you?")
TURNS = [
    HELLO,
    message("assistant", "A small model."),
    message("user", "  How small?  "),
]
THOUGHT = message("assistant", "<think>\nThey ask for a sum.\nIt is 4.\n</think>\n\nThe sum is 4.")
REASONED = message("assistant", "The sum is 4.", reasoning_content="They ask for a sum.")
SUM = message("user", "What is 2 + 2?")
MORE = message("user", "And 3 + 3?")
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather <now> & here.",
        "parameters": {
            "type": "object",
            "properties": {
                "town": {"type": "string", "description": "A town, e.g. Łódź"},
                "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
                "days": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["town"],
        },
    },
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"town": "Łódź", "days": [1, 2]}}}
CALLED = [
    message("user", "Weather?"),
    message("assistant", "", tool_calls=[CALL]),
    message("tool", '{"sky": "<grey>"}', tool_call_id="abcdefghi", name="weather"),
]
CASES = {
    "one user turn": ([HELLO], True),
    "one user turn, no prompt": ([HELLO], False),
    "system and user": ([SYSTEM, HELLO], True),
    "turns": (TURNS, True),
    "turns, no prompt": ([*TURNS, message("assistant", "Seven million weights.\n")], False),
    "system and turns": ([SYSTEM, *TURNS, message("assistant", "Seven million."), MORE], True),
    "thinking": ([SUM, THOUGHT, MORE], True),
    "thinking last": ([SYSTEM, SUM, THOUGHT], False),
    "reasoning apart": ([SUM, REASONED, MORE], True),
    "not ASCII": ([message("user", "“Où est le café?” 東京 🦀 e\u0301 \u200b\u00a0x"), message("assistant", "Là-bas…"), HELLO], True),
    "HTML": ([message("system", "<b>&amp;</b>"), message("user", "if a < b && c > d: print('x', \"y\") # {{ no }} {% no %}")], True),
    "empty system": ([message("system", ""), HELLO], True),
    "empty user": ([message("user", "")], True),
    "spaces": ([message("user", "\n\n two \t lines \r\n\n"), message("assistant", "\n ok \n"), message("user", "x")], True),
    "special tokens in text": ([message("user", "</s><s>[INST] <|im_end|>\n<|im_start|>system")], True),
    "assistant first": ([message("assistant", "I begin."), HELLO], True),
    "two users": ([HELLO, SUM], True),
    "two assistants": ([HELLO, THOUGHT, REASONED, MORE], True),
    "late system": ([HELLO, message("assistant", "Yes?"), SYSTEM, SUM], True),
    "system alone": ([SYSTEM], True),
    "unknown role": ([HELLO, message("critic", "Hm.")], True),
    "no messages": ([], True),
    "tools": ([SYSTEM, HELLO], True, {"tools": [WEATHER]}),
    "tool called": (CALLED, True, {"tools": [WEATHER]}),
    "tool answered": ([*CALLED, message("assistant", "Grey.")], False, {"tools": [WEATHER]}),
    "thinking off": ([SUM], True, {"enable_thinking": False, "thinking": False}),
    "thinking on": ([SYSTEM, SUM], True, {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"}),
}  # fmt: skip


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def fnv1a(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 2**64 - 1
    return h


def hashed(text):
    data = text.encode()
    return f"{fnv1a(data):016x} {len(data)}"


def render(template, messages, add_generation_prompt, variables={}):
    """The text and nothing, or nothing and the kind and message of the error."""
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=add_generation_prompt, **TOKENS, **variables
        )
        return rendered[0], None
    except jinja2.exceptions.TemplateError as error:
        own = type(error) is jinja2.exceptions.TemplateError
        return None, ("refuses" if own else "fails", str(error))
    except Exception as error:
        return None, ("fails", f"{type(error).__name__}: {error}")


# Own templates are tried with these, and those that are about roles with all.
FEW = ("one user turn", "system and turns", "thinking", "not ASCII", "no messages", "tool called")
ALL = ("alternate", "loops")


def whole(path):
    template = path.read_bytes().decode()
    out = {}
    names = CASES if path.stem in ALL else FEW if "messages" in template else FEW[:1]
    for name, case in ((name, CASES[name]) for name in names):
        text, error = render(template, *case)
        out[name] = {"text": text} if error is None else {error[0]: error[1]}
        if error and error[0] == "fails":
            print(f"{path.name}: {name}: {error[1]}", file=sys.stderr)
    return out


def brief(path):
    data = path.read_bytes()
    results = [render(data.decode(), *case) for case in CASES.values()]
    return {
        "template": f"{fnv1a(data):016x}",
        "renderings": [hashed(text) if error is None else error[0] for text, error in results],
    }


def folder(path, make):
    return {file.name.removesuffix(".jinja"): make(file) for file in sorted(path.glob("*.jinja"))}


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=root / "kivi-model/tests/golden")
    parser.add_argument("--data", type=pathlib.Path, default=os.environ.get("KIVI_DATA"))
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    args = parser.parse_args()
    chat_template_utils.datetime = Clock
    file = args.out / "chat.json"
    old = json.loads(file.read_text()) if file.exists() else {}

    outside = args.data and args.data / "chat_templates"
    if not outside or not outside.is_dir():
        print("chat.json: templates of others as they were: --data or KIVI_DATA has no chat_templates", file=sys.stderr)
    made = {
        "made_with": f"transformers {transformers.__version__}, Jinja2 {jinja2.__version__}",
        "now": NOW.isoformat(),
        "tokens": TOKENS,
        "cases": [
            {"name": name, "messages": messages, "add_generation_prompt": prompt, "variables": dict(*variables)}
            for name, (messages, prompt, *variables) in CASES.items()
        ],
        "own": folder(root / "kivi-model/tests/chat_templates", whole),
        "others": folder(outside, brief) if outside and outside.is_dir() else old.get("others", {}),
    }
    if args.check:
        differ = [key for key in made if key != "made_with" and made[key] != old.get(key)]
        if differ:
            raise SystemExit(f"{file}: not what Jinja2 makes now: {', '.join(differ)}")
        print("chat.json: as made before")
        return
    text = json.dumps(made, ensure_ascii=False, indent=1) + "\n"
    file.write_text(text)
    print(f"chat.json: {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
