"""The text that the demo tokenizers are trained on: every sentence is made here, from a seed.

No text of anybody else goes in. Templates are filled from word lists by a seeded generator, so
that the same seed gives the same bytes on every machine (`random.Random` promises that for
`random()`, the one method used here).
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class Picker:
    """Choices from one seed, by `random()` alone: no Python release changes its sequence."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def number(self, low: int, high: int) -> int:
        """Return an integer from low to high, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def of(self, items: Sequence[str]) -> str:
        return items[self.number(0, len(items) - 1)]

    def rather_early(self, items: Sequence[str]) -> str:
        """One of the items, the first ones more often than the last, as words are in use."""
        return items[int(self._random.random() * self._random.random() * len(items))]


def words(text: str) -> list[str]:
    return text.split()


def phrases(text: str) -> list[str]:
    """Return the parts between bars, without line ends."""
    return text.replace("\n", "").split("|")


NAMES = words(
    """Ada Bruno Chidi Daria Emil Farah Goran Hana Ilse Jonas Kofi Lena Mateo Nadia Oskar
Priya Quinn Rosa Samir Tomas Uma Viktor Wanda Yusuf Zoe Maria Peter Sofia"""
)
THINGS = words(
    """apples pears marbles stickers books pencils tickets stamps cookies balloons shells bottles
chairs tomatoes eggs coins flowers boxes cards buttons candles lemons bricks postcards"""
)
PLACES = phrases(
    """the market|the library|a small bakery|the school garden|the train station|her workshop|
the harbour|a mountain village|the post office|the science museum|the farm|the swimming pool"""
)
TIMES = phrases(
    """in the morning|after lunch|on Monday|every week|during the holidays|in the evening|
before the concert|last summer|each day|at the end of the month"""
)


def word_problem(pick: Picker) -> str:
    name, other, thing = pick.of(NAMES), pick.of(NAMES), pick.of(THINGS)
    place, when = pick.of(PLACES), pick.of(TIMES)
    a, b, c = pick.number(12, 480), pick.number(2, 12), pick.number(3, 99)
    price = f"${c}.{pick.number(0, 9)}{pick.number(0, 9)}"
    templates = (
        f"{name} has {a} {thing} and buys {c} more at {place} {when}. How many {thing} does {name} "
        f"have now? {a} + {c} = {a + c}, so the answer is {a + c}.",
        f"{name} packs {a * b} {thing} into {b} equal boxes. Each box then holds {a * b} / "
        f"{b} = {a} "
        f"{thing}. {other} takes {b} of the boxes, which leaves none.",
        f"A ticket to {place} costs {price}. If {name} and {other} buy {b} tickets together, "
        f"they pay "
        f"{b} times as much as for one ticket. How much change do they get from $1000?",
        f"{name} gives half of {2 * a} {thing} to {other}, who already had {c}. Now {other} has "
        f"{a} + {c} = {a + c} {thing}, while {name} keeps {a}. The total number did not change.",
        f"There are {a} pupils at {place}. {c} percent of them walk home {when}; the "
        f"remaining pupils "
        f"take one of {b} buses. How many pupils are on each bus, if every bus carries the "
        f"same number?",
        f"{name} reads {c} pages {when} and needs {b} days to finish the book, because it has "
        f"{c * b} pages. {other} reads twice as fast and therefore needs only half of the time.",
        f"Step 1: {name} earns ${c} an hour. Step 2: in {b} hours that makes ${c * b}. Step "
        f"3: after "
        f"spending ${b}, there are ${c * b - b} left. Answer: {c * b - b}",
        f"The train leaves at {b}:{pick.number(10, 59)} and travels {a} kilometres at an "
        f"average speed "
        f"of {c + 40} km/h. When does it arrive at {place}, and how long did {name} have to wait?",
    )
    return pick.of(templates)


def mathematics(pick: Picker) -> str:
    a, b, c = pick.number(2, 99), pick.number(2, 999), pick.number(1, 9)
    x, n, f = pick.of("xyzt"), pick.of("nkm"), pick.of("fgh")
    templates = (
        f"Let {f}({x}) = {x}² + {a}{x} − {b}. Then {f}′({x}) = 2{x} + {a}, which is zero at "
        f"{x} = −{a}/2.",
        f"The sum of the first {n} integers is {n}({n} + 1)/2; for {n} = {b} this gives "
        f"{b * (b + 1) // 2}.",
        f"Solve {a}{x} + {c} = {a * c + c}. Subtract {c} from both sides: {a}{x} = {a * c}, "
        f"hence {x} = {c}.",
        f"∀ε > 0 ∃δ > 0: |{x} − {a}| < δ ⇒ |{f}({x}) − {f}({a})| < ε, so {f} is continuous at {a}.",
        f"∑_{{{n}=1}}^∞ 1/{n}² = π²/6 ≈ 1.644934, and ∫₀^{a} {x} d{x} = {a * a / 2:g}.",
        f"$\\frac{{{a}}}{{{b}}} \\cdot \\sqrt{{{c}}} \\leq \\sum_{{{n}=0}}^{{{a}}} "
        f"\\alpha_{{{n}}} {x}^{{{n}}}$",
        f"\\begin{{equation}} {f}({x}) = \\int_0^{{{a}}} e^{{-{x}}} \\, d{x} \\end{{equation}}",
        f"Suppose that {a} divides {n}. Since {a} × {b} = {a * b}, the remainder modulo {a} "
        f"is zero. ∎",
        f"If P(A) = 0.{a} and P(B) = 0.{c}, and both are independent, then P(A ∩ B) is their "
        f"product.",
        f"The vectors u = ({a}, {b}) and v = ({c}, −{a}) have the scalar product {a * c - b * a}.",
        f"α + β + γ = 180°, sin²θ + cos²θ = 1, √2 ≠ {a}/{b}, {a} ∈ ℕ ⊂ ℤ ⊂ ℚ ⊂ ℝ, {x} → ∞, ±{c}.",
        f"By induction on {n}, the claim holds for every {n} ≥ {c}. The probability is at "
        f"most {a}%.",
        f"#### {a * b}",
    )
    return pick.of(templates)


def code(pick: Picker) -> str:
    noun = pick.of(
        words("value item count total index result token length offset buffer row column")
    )
    verb = pick.of(words("compute update parse read write merge filter sort encode decode"))
    other = pick.of(words("values items names lines keys numbers tokens points nodes edges"))
    a, b = pick.number(0, 9), pick.number(10, 512)
    templates = (
        f"def {verb}_{noun}({other}: list[int]) -> int:\n    {noun} = {a}\n    for i, x in "
        f"enumerate({other}):\n        if x % {b} == {a}:\n            {noun} += x * i\n    "
        f"return {noun}\n",
        f"class {verb.title()}{noun.title()}:\n    def __init__(self, {noun}=None):\n        "
        f"self.{noun} = {noun} or []\n\n    def {verb}(self):\n        return len(self.{noun})\n",
        f"import numpy as np\n\n{other} = np.zeros(({b}, {a + 1}), "
        f"dtype=np.float32)\nprint({other}.shape)\n",
        f'if __name__ == "__main__":\n    try:\n        print({verb}("{noun}.txt"))\n    except '
        f'ValueError as error:\n        raise SystemExit(f"{{error}}")\n',
        f"fn {verb}({noun}: &[u8]) -> Option<usize> "
        f"{{\n    let mut {other} = Vec::new();\n    while let "
        f"Some(x) = {noun}.iter().next() {{\n        {other}.push(*x);\n    }}\n    None\n}}\n",
        f"for (int i = {a}; i < {b}; i++) {{\n    {noun}[i] = {other}[i] + {a};\n}}\n",
        f"SELECT {noun}, COUNT(*) FROM {other} WHERE {noun} > {b} GROUP BY {noun} ORDER BY "
        f"{noun} DESC;\n",
        f'{{"{noun}": {b}, "{other}": ["{verb}", null, true], "id": {a}}}\n',
        f"const {noun} = await fetch(`/api/{other}/${{id}}`);\nconsole.log({noun}.map(x => x "
        f"!== {a}));\n",
        f'<div class="{noun}"><a href="/{other}.html">{verb}</a></div>\n',
        f"assert {verb}([{a}, {b}]) == {a + b}  # the {noun} of both\n",
        f"$ git commit -m '{verb} the {noun}' && make test\n",
    )
    return pick.of(templates)


SUBJECTS = phrases(
    """the teacher|the student|a good explanation|the language model|our neighbour|the river|
the committee|an old map|the new bridge|every experiment|the committee of the city|
a careful reader|the following example|this method|a different approach|the author of the letter"""
)
VERBS = phrases(
    """describes|changes|supports|compares|contains|requires|explains|produces|follows|improves|
replaces|remembers|connects|measures|distributes|understands|questions|represents"""
)
OBJECTS = phrases(
    """the first result|a long journey|the weather of the region|several possible answers|
the difference between two words|an unexpected discovery|the history of mathematics|
the same sentence in another language|a simple rule|the important information|the whole question|
the relationship between cause and effect|a collection of photographs|
the temperature of the water|the next generation|an international agreement|
the shortest path through the network"""
)
CLAUSES = phrases(
    """because nobody had asked before|although the evidence was weak|when the light is right|
without any help|so that everyone can see it|as shown in the table below|
which is often forgotten|even if it takes more time than expected|
and that is what makes it interesting|instead of waiting for permission|
where the old road used to be|if we look at it more closely|according to the report|
but only under certain conditions|before anything else happens"""
)
OPENERS = phrases(
    """However, |In general, |For example, |Finally, |At first, |Therefore |Sometimes |
“Of course,” she said, “|Today |On the other hand, |It's clear that |We don't know whether |
He thought that |I'd say |They've shown that """
)


def prose(pick: Picker) -> str:
    subject, verb, thing, clause = (
        pick.of(SUBJECTS), pick.of(VERBS), pick.of(OBJECTS), pick.of(CLAUSES),
    )  # fmt: skip
    opener, year = pick.of(OPENERS), pick.number(1801, 2029)
    close = "”" if opener.endswith("“") else ""
    templates = (
        f"{subject.capitalize()} {verb} {thing}, {clause}.",
        f"{opener}{subject} {verb} {thing}.{close}",
        f"{opener}{subject} {verb} {thing} {clause}.{close}",
        f"In {year}, {subject} {verb} {thing} – {clause}.",
        f"Why {subject} {verb} {thing} is a good question, {clause}.",
        f"* {subject.capitalize()} {verb} {thing}\n* {pick.of(SUBJECTS).capitalize()}: {clause}\n",
    )
    return pick.of(templates)


# One line per language; "{}" is a number. Alternatives in brackets multiply the sentences.
LANGUAGES = {
    "de": "[Die Lehrerin|Der Nachbar|Unsere Freundin|Das Mädchen] [kauft|zählt|verkauft|braucht] "
    "{} [Äpfel|Bücher|Brötchen|Stühle] [für die Schule|am Bahnhof|und überlegt|nach der Übung].",
    "fr": "[La maîtresse|Le garçon|Notre voisine|L’élève] [achète|compte|préfère|a trouvé] "
    "{} [pommes|livres|gâteaux|fenêtres] [à la gare|pour l’été|parce que c’est gratuit|déjà].",
    "es": "[La niña|El señor|Nuestra compañera|El camión] [lleva|compró|necesita|cuenta] "
    "{} [manzanas|libros|corazones|árboles] [en la estación|mañana|según el año|también].",
    "pl": "[Dziewczyna|Sąsiad|Nauczyciel|Źródło] [kupuje|liczy|ma|znajduje] "
    "{} [jabłek|książek|krzeseł] [na dworcu|w środę|dziś wieczorem|później].",
    "tr": "[Öğretmen|Çocuk|Komşumuz] [bugün|yarın|şimdi] {} [elma|kitap|çiçek] "
    "[aldı|saydı|götürdü].",
    "vi": "[Cô giáo|Bạn tôi|Người bán hàng] [mua|đếm|có] {} [quả táo|quyển sách|cái ghế] [hôm "
    "nay|ở chợ].",
    "ru": "[Учительница|Мальчик|Наша соседка|Поезд] [покупает|считает|привозит|находит] "
    "{} [яблок|книг|билетов|вопросов] [на вокзале|сегодня вечером|потому что так нужно|для школы].",
    "el": "[Η δασκάλα|Ο γείτονας|Το παιδί] [αγοράζει|μετράει|βρίσκει] "
    "{} [μήλα|βιβλία|εισιτήρια] [στον σταθμό|σήμερα το πρωί|για το σχολείο].",
    "zh": "[老师|小明|我们的朋友|这个学生]"
    "[今天买了|一共有|数了数|送给朋友]{}[个苹果|本书|张票|朵花]"
    "[，还剩多少？|，因为很便宜。|，答案是|。]",
    "ja": "[先生は|友達は|この学生は|私たちは]"
    "[今日|駅で|学校で|毎日]{}[個のりんごを|冊の本を|枚の切符を]"
    "[買いました。|数えた。|もらいました。]",
    "ko": "[선생님은|친구는|우리 학생은] [오늘|역에서|학교에서] {}"
    "[개의 사과를|권의 책을|장의 표를] "
    "[샀습니다.|세었다.|받았습니다.]",
    "ar": "[المعلمة|الطالب|صديقنا] [اشترى|يحتاج إلى|يعد] {} [تفاحة|كتابا|تذكرة] [في "
    "المحطة|اليوم|من أجل المدرسة].",
    "he": "[המורה|הילד|השכנה שלנו] [קונה|סופר|מצא] {} [תפוחים|ספרים|כרטיסים] "
    "[בתחנה|היום|בשביל הכיתה].",
    "hi": "[अध्यापक ने|मेरे मित्र ने|छात्र ने] [आज|स्टेशन पर|स्कूल में] {} [सेब|किताबें|टिकट] [खरीदे हैं।|गिने।|पाए।]",
    "th": "[ครู|เพื่อนของฉัน|นักเรียน][ซื้อ|นับ|มี] {} [แอปเปิล|หนังสือ|ตั๋ว][วันนี้|ที่สถานี|ในโรงเรียน]",
}
EMOJI = words("🙂 😀 😂 🎉 👍 🚀 ❤️ ✅ 🔥")


def other_language(pick: Picker) -> str:
    template = LANGUAGES[pick.of(tuple(LANGUAGES))]
    sentence = re.sub(r"\[(.*?)\]", lambda choice: pick.of(choice[1].split("|")), template)
    return sentence.replace("{}", str(pick.number(2, 999)))


NOUNS = words(
    """time year people way day thing world school state family student group country problem hand
part place case week company system program question work government number night point home
water room mother area money story fact month lot right study book eye job word business issue
side kind head house service friend father power hour game line end member law car city
community name president team minute idea body information back parent face level office door
health person art war history party result change morning reason research girl guy moment air
teacher force education foot boy age policy process music market sense nation plan college
interest death experience effect use class control field development role effort rate heart
drug show leader light voice wife police mind price report decision son view relationship town
road difference value building action season society tax director position player record paper
space ground form event official matter center couple site project activity star table need
court oil situation cost industry figure street image phone data picture practice piece land
product doctor wall worker news test movie north love step size model function method theory
proof sequence matrix equation variable triangle circle angle square formula language sentence
letter character window garden winter summer river mountain island forest animal bird horse
machine engine signal energy surface pressure temperature distance speed weight measure limit
error memory network computer software server message password kitchen bread cheese dinner
breakfast chocolate orange hospital airport village bridge church journey ticket"""
)
VERB_STEMS = words(
    """look ask work seem feel call turn need help show play move believe happen offer remain
suggest talk appear wait expect explain answer visit open walk reach kill pass sell stay report pull
return consider accept fail record watch learn follow start want add listen count point collect
join print check test train result connect protect direct select predict discuss depend contain
obtain maintain remember discover consider deliver consist resist insist present represent
prevent develop perform transform inform confirm express publish finish establish mention
question measur compar prepar requir produc reduc introduc chang arriv receiv believ improv
remov approv describ decid provid divid includ calculat estimat generat evaluat translat
indicat creat operat separat illustrat demonstrat communicat combin defin determin imagin
examin continu argu encourag manag"""
)
ADJECTIVES = words(
    """good new first last long great little own other old right big high different small large next
early young important few public bad same able hard easy free strong possible whole real sure
certain clear recent common simple similar single special serious ready left physical general
local current natural personal normal main final necessary available popular traditional useful
careful beautiful wonderful powerful successful political medical historical practical critical
typical original national international social financial commercial environmental legal human
common black white green blue yellow warm cold dark heavy quick quiet slow soft thin wide empty
wrong correct exact direct random linear positive negative finite infinite discrete continuous
parallel equal"""
)
ADVERBS = words(
    """very often never always again still also perhaps already almost together quite rather soon
later here there today then only just even maybe therefore instead anyway moreover otherwise
nearly away forward"""
)
FUNCTION_WORDS = words(
    """the of and to in is that for it as was with be by on not he his but at are this have from or
had an they which one you were all her she there would their we him been has when who will no
more if out so up said what its about than into them can only other some could these two may
first then do any like my now over such our me even most after also did many before must
through where much your well down should because each those between how too under while might
against without until upon across during though whether either nor since around"""
)


def vocabulary(pick: Picker) -> str:
    """Return common words and their inflections, in addition to the words of the templates."""

    def inflected() -> str:
        kind = pick.number(0, 9)
        if kind < 3:
            return pick.rather_early(NOUNS) + pick.of(("", "", "s"))
        if kind < 5:
            return pick.rather_early(VERB_STEMS) + pick.of(
                ("ed", "ing", "es", "er", "ation", "ment")
            )
        if kind < 7:
            return pick.rather_early(ADJECTIVES) + pick.of(("", "", "", "ly", "ness", "er"))
        return pick.rather_early(ADVERBS if kind == 7 else FUNCTION_WORDS)

    words = [inflected() for _ in range(pick.number(5, 12))]
    return " ".join(words).capitalize() + pick.of((".", ".", "?", "!", ";", ", and so on."))


def chat(pick: Picker) -> str:
    greeting = pick.of(
        ("Thanks", "Great", "Sure", "Hello", "Sorry", "Yes", "No", "Okay", "Well done")
    )
    close = pick.of(("Right?", "See you soon.", "…", ":-)"))
    return f"{greeting}! {pick.of(EMOJI)} {prose(pick)} {close}"


KINDS: dict[str, Callable[[Picker], str]] = {
    "word_problem": word_problem,
    "mathematics": mathematics,
    "code": code,
    "prose": prose,
    "vocabulary": vocabulary,
    "other_language": other_language,
    "chat": chat,
}


def texts(seed: int, counts: dict[str, int]) -> Iterator[str]:
    """`counts[kind]` texts of every kind, kind by kind, the same for the same seed."""
    pick = Picker(seed)
    for kind, count in counts.items():
        for _ in range(count):
            yield KINDS[kind](pick)
