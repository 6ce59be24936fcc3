#!/usr/bin/env python3
"""Writes longbench-metrics.json: scores of LongBench's metrics for pairs of texts made for this purpose.

    python3 longbench.py [--out DIR] [--check]

The packages are those that LongBench and KIVI score with: rouge, fuzzywuzzy without python-Levenshtein (KIVI's
requirements.txt does not have it, and with it scores differ), jieba. The formulas around them are written down again here.
"""

import argparse
import difflib
import importlib.metadata
import json
import logging
import pathlib
import re
import string
import warnings
from collections import Counter

warnings.filterwarnings("ignore")
import jieba
from fuzzywuzzy import fuzz
from rouge import Rouge

jieba.setLogLevel(logging.ERROR)

CLASSES = ["Date", "Other date", "Location", "Other location", "Number of something", "Person", "Individual", "Individual person"]
NESTED = ["city", "city name", "big city name", "name", "country"]
LONG_LINE = "result = compute(alpha, beta, gamma, delta, epsilon, zeta, eta, theta, iota, kappa, lambda_, mu, nu, xi, omicron, pi, rho, sigma, tau, upsilon, phi, chi, psi, omega, first=first_value, second=second_value, third=third_value)"

# Of each metric: an answer, a reference, and for a classification the classes.
PAIRS = {
    "qa_f1": [
        ("The quick brown fox", "a quick, brown fox!"),
        ("", "Paris"),
        ("?!...", "Paris"),
        ("", ""),
        ("the a an", "An the"),
        ("It was in Paris, in the spring of 1889.", "Paris"),
        ("no no no yes", "no no"),
        ("first line\nsecond line", "second\tline first"),
        ("ÉCOLE Normale — Supérieure", "école normale supérieure"),
        ("theatre and another ant", "the theatre, an ant"),
        ("the-end a_b the", "theend ab"),
        ("$1,234.50", "1234.50"),
        ("a\u00b2 the\u00b2 b", "b"),
        ("x\u001cy\u00a0z", "x y z"),
        ("İSTANBUL ΟΔΟΣ", "i̇stanbul οδος"),
        ("—the— “an” a", "— — “ ”"),
        ("unanswerable", "Unanswerable."),
        ("日本 the 東京", "東京"),
    ],
    "qa_f1_zh": [
        ("北京是中国的首都。", "中国的首都是北京"),
        ("", "北京"),
        ("！？，。", "北京"),
        ("", ""),
        ("他来到了网易杭研大厦", "网易杭研大厦"),
        ("小明 硕士 毕业 于 中国 科学院", "小明硕士毕业于中国科学院计算所"),
        ("2023年GDP增长5.2%", "增长5.2%"),
        ("是是是的", "是的"),
        ("第一行\n第二行", "第二行\r\n第一行"),
        ("《红楼梦》的作者是曹雪芹", "曹雪芹（约1715年—约1763年）"),
        ("C++和c#，以及AT&T", "c++、C#"),
        ("部门a-b-c的版本v1.2-rc3", "部门a的版本1.2"),
        ("𠮷野家㐀丘〇", "𠮷野家"),
        ("「安全」【提示】…〜！", "安全·提示"),
        ("Ångström和ABC", "ångström abc"),
    ],
    "rouge_l": [
        ("The cat sat on the mat.", "The cat lay on the mat."),
        ("", "Something happened."),
        ("Something happened.", ""),
        ("...", "Something happened."),
        (". . .", ". ."),
        (" ", "\n"),
        ("Pi is 3.14. It is known.", "It is known that pi is 3.14"),
        ("one two three four five", "five four three two one"),
        ("a b c d. e f g h", "e f g h. a b c d."),
        ("the the the the the the", "the cat and the dog and the bird"),
        ("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5"),
        ("line one\nline two\n\nline three", "line three line one"),
        ("a b a b a b c", "b a b a c b a"),
        ("x y z. p q", "y x z q p. z y x"),
        ("Café au lait — naïve façade.", "Cafe au lait — naïve façade"),
        ("non\u00a0breaking x\u001cy", "non breaking x y"),
        ("Case matters.", "case Matters."),
        ("The council met on Monday. It agreed to raise the budget by 4.5 percent. No vote was taken.", "On Monday the council agreed, without a vote, to raise its budget. The raise is 4.5 percent."),
    ],
    "rouge_l_zh": [
        ("会议讨论了明年的预算。大家同意增加投入。", "会议同意明年增加预算投入。"),
        ("", "会议"),
        ("。", "会议。"),
        ("会议", ""),
        ("版本1.5比版本1.4快。", "版本1.4比版本1.5慢."),
        ("今天天气很好.明天下雨.", "明天下雨.今天天气很好."),
        ("是的是的是的", "是的"),
        ("主持人：请大家发言\n张三：我同意", "张三同意主持人的意见"),
        ("Transformer模型用于机器翻译", "机器翻译使用transformer模型"),
        ("结婚的和尚未结婚的都来了", "尚未结婚的和尚来了"),
        ("a-b测试 100% 完成", "完成100%的a-b测试"),
        ("乒乓球拍卖完了，　全角空格", "乒乓球 拍卖 完了"),
    ],
    "classification": [
        ("Date", "Date", CLASSES),
        ("Other date", "Other date", CLASSES),
        ("", "Date", CLASSES),
        ("...", "Date", CLASSES),
        ("Person or Location", "Person", CLASSES),
        ("Type: Individual person", "Individual person", CLASSES),
        ("Individual person", "Individual", CLASSES),
        ("date", "Date", CLASSES),
        ("big city name", "big city name", NESTED),
        ("big city name", "city name", NESTED),
        ("city name country", "city", NESTED),
        ("name", "big city name", NESTED),
        ("体育新闻", "体育", ["体育", "体育新闻", "新闻"]),
        ("体育新闻", "体育新闻", ["体育", "体育新闻", "新闻"]),
        ("city city", "city name", ["city", "city", "city name"]),
        ("anything", "city", ["", "city"]),
        ("Date\nLocation", "Location", CLASSES),
    ],
    "retrieval": [
        ("Paragraph 7", "Paragraph 7"),
        ("7", "Paragraph 7"),
        ("", "Paragraph 7"),
        ("Paragraph", "Paragraph 7"),
        ("Paragraph 7, not 17 or 77", "Paragraph 7"),
        ("Paragraph 07", "Paragraph 7"),
        ("7 7 8", "Paragraph 7"),
        ("paragraph seven", "Paragraph 7"),
        ("3.7", "Paragraph 7"),
        ("12", "Paragraph 1, Paragraph 12"),
        ("٣ 3", "Paragraph 3"),
        ("10\n11\n10", "see Paragraph x, Paragraph 10"),
    ],
    "retrieval_zh": [
        ("段落3", "段落3"),
        ("3", "段落3"),
        ("", "段落3"),
        ("段落三", "段落3"),
        ("段落3和段落13", "段落3"),
        ("段落03", "段落3"),
        ("３", "段落3"),
        ("３", "段落３"),
        ("3，3，4", "段落3"),
        ("Paragraph 3", "段落3"),
        ("段落1\n段落2", "段落2"),
    ],
    "count": [
        ("5", "5"),
        ("", "5"),
        ("five", "5"),
        ("There are 5 paragraphs, 5 of 20.", "5"),
        ("15", "5"),
        ("5.0", "5"),
        ("05", "5"),
        ("-5", "5"),
        ("1 2 3 4 5 6 7", "5"),
        ("5五", "5"),
        ("1,000", "1000"),
    ],
    "code_sim": [
        ("return x + 1", "return x + 1"),
        ("return x + 1", "return x - 2"),
        ("", "return x"),
        ("", ""),
        ("# only a comment", ""),
        ("\n\n    return x\n    pass", "    return x"),
        ("# comment\nx = 1", "x = 1"),
        ("```python\nimport os\n```", "import os"),
        ("// comment\n/* block */ int i = 0;", "int i = 0;"),
        ("#include <a.h>\n\nint main()", "int main() {"),
        ("x = 1  # one\ny = 2", "y = 2"),
        ("abcdefgh", "h"),
        ("print('größer')", "print(\"größer\")"),
        ("aaaaaaab", "baaaaaaa"),
        ("qabxcd", "abycdf"),
        (LONG_LINE, LONG_LINE.replace("alpha, beta", "beta, alpha").replace("first_value", "1")),
        (LONG_LINE[40:], LONG_LINE + "  "),
        ("a" * 50, "a" * 250),
        ("self.assertEqual(len(a), 3)", "self.assertEqual(3, len(b))"),
    ],
}

# Whole answers: a task, an answer, its references, the classes.
ANSWERS = [
    ("trec", "\n\nDate\nQuestion: Location", ["Date"], CLASSES),
    ("trec", "  \nDate", ["Date"], CLASSES),
    ("triviaqa", "\nParis\nLondon", ["London", "Paris, France"], None),
    ("triviaqa", "Paris\r\nParis", ["Paris"], None),
    ("samsum", "\nAnna will come.\nTom: hi", ["Anna will come at 5.", "Tom says hi."], None),
    ("lsht", "体育\n新闻：财经", ["体育"], ["体育", "财经"]),
    ("qasper", "yes\nno", ["no", "yes", "maybe yes"], None),
    ("narrativeqa", "", ["", "a"], None),
    ("multifieldqa_zh", "答案是北京", ["北京", "上海"], None),
    ("dureader", "需要三天时间", ["三天", "大约需要三天"], None),
    ("gov_report", "The agency spent less.", ["The agency spent less. It said so."], None),
    ("passage_count", "4 of 8", ["4"], None),
    ("passage_retrieval_en", "Paragraph 2", ["Paragraph 2"], None),
    ("passage_retrieval_zh", "段落2", ["段落2"], None),
    ("lcc", "\n# do\nfoo(bar)\nbaz", ["foo(baz)", "foo(bar)"], None),
    ("repobench-p", "foo", [], None),
]
FIRST_LINE = ("trec", "triviaqa", "samsum", "lsht")
TASKS = {
    "qa_f1": "narrativeqa qasper multifieldqa_en hotpotqa 2wikimqa musique triviaqa",
    "qa_f1_zh": "multifieldqa_zh",
    "rouge_l": "gov_report qmsum multi_news samsum",
    "rouge_l_zh": "dureader vcsum",
    "classification": "trec lsht",
    "retrieval": "passage_retrieval_en",
    "retrieval_zh": "passage_retrieval_zh",
    "count": "passage_count",
    "code_sim": "lcc repobench-p",
}


def f1(answer, reference):
    same = sum((Counter(answer) & Counter(reference)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(answer), same / len(reference)
    return 2 * precision * recall / (precision + recall)


def squad(text):
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(?:the|an|a)\b", " ", kept).split()


# The punctuation that LongBench strikes out of Chinese, as ranges.
STRUCK = re.compile("[–—‘’‛-‟…‧﹏、-〃》-】〔-〟〰〾〿！-－／：-＠［-｀｛-､" + re.escape(string.punctuation) + "]")


def chinese(text):
    words = ("".join(STRUCK.sub("", word.lower()).split()) for word in jieba.cut(text, cut_all=False))
    return [word for word in words if word]


def rouge_l(answer, reference, classes=None):
    try:
        return Rouge().get_scores([answer], [reference], avg=True)["rouge-l"]["f"]
    except (ValueError, RecursionError):
        return 0.0


def classification(answer, reference, classes):
    named = [name for name in classes if name in answer]
    for name in named:  # skips one after each removal, as published scores do
        if name != reference and name in reference:
            named.remove(name)
    return 1 / len(named) if reference in named else 0.0


def share(answer, right):
    numbers = re.findall(r"\d+", answer)
    return numbers.count(right) / len(numbers) if numbers else 0.0


def code_sim(answer, reference, classes=None):
    lines = (line for line in answer.lstrip("\n").split("\n") if not any(mark in line for mark in ("`", "#", "//")))
    return fuzz.ratio(next(lines, ""), reference) / 100


METRICS = {
    "qa_f1": lambda answer, reference, _: f1(squad(answer), squad(reference)),
    "qa_f1_zh": lambda answer, reference, _: f1(chinese(answer), chinese(reference)),
    "rouge_l": rouge_l,
    "rouge_l_zh": lambda answer, reference, _: rouge_l(*(" ".join(jieba.cut(text)) for text in (answer, reference))),
    "classification": classification,
    "retrieval": lambda answer, reference, _: share(answer, re.search(r"Paragraph (\d+)", reference)[1]),
    "retrieval_zh": lambda answer, reference, _: share(answer, re.search(r"段落(\d+)", reference)[1]),
    "count": lambda answer, reference, _: share(answer, reference),
    "code_sim": code_sim,
}


def score(task, answer, references, classes):
    metric = next(METRICS[name] for name, tasks in TASKS.items() if task in tasks.split())
    if task in FIRST_LINE:
        answer = answer.lstrip("\n").split("\n")[0]
    return max((metric(answer, reference, classes) for reference in references), default=0.0)


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=root / "kivi-cli/tests/golden")
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    args = parser.parse_args()
    if fuzz.SequenceMatcher is not difflib.SequenceMatcher:
        raise SystemExit("fuzzywuzzy would use python-Levenshtein: uninstall it, or use another environment")
    packages = ("rouge", "fuzzywuzzy", "jieba")
    made = {
        "made_with": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        "tasks": {metric: tasks.split() for metric, tasks in TASKS.items()},
        "pairs": [
            {"metric": name, "answer": answer, "reference": reference, "classes": classes[0] if classes else [], "score": METRICS[name](answer, reference, *classes or [None])}
            for name, pairs in PAIRS.items()
            for answer, reference, *classes in pairs
        ],
        "answers": [
            {"task": task, "answer": answer, "references": references, "classes": classes or [], "score": score(task, answer, references, classes)}
            for task, answer, references, classes in ANSWERS
        ],
    }  # fmt: skip
    file = args.out / "longbench-metrics.json"
    if args.check:
        old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        differ = [key for key in made if key != "made_with" and made[key] != old.get(key)]
        if differ:
            raise SystemExit(f"{file}: not what is made now: {', '.join(differ)}")
        print("longbench-metrics.json: as made before")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    # A line a pair, so that a change can be read.
    lines = lambda items: "[\n  " + ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in items) + "\n ]"
    parts = {key: lines(value) if isinstance(value, list) else json.dumps(value) for key, value in made.items()}
    text = "{\n" + ",\n".join(f" {json.dumps(key)}: {value}" for key, value in parts.items()) + "\n}\n"
    file.write_text(text, encoding="utf-8")
    print(f"longbench-metrics.json: {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
