"""Word problems with worked answers, in English and Chinese, for the calibration set.

Every kind draws its numbers, computes the answer exactly, and writes it out in both languages.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Worked:
    """A question, the way to its answer, and the answer, in one language."""

    question: str
    reasoning: str
    answer: str

    def messages(self) -> list[dict[str, str]]:
        """The question and R1's way of answering it."""
        content = f"<think>\n{self.reasoning}\n</think>\n\n{self.answer}"
        return [
            {"role": "user", "content": self.question},
            {"role": "assistant", "content": content},
        ]


def decimal(value: Fraction | int) -> str:
    """Two places, fewer where they are zeros."""
    return f"{float(value):,.2f}".rstrip("0").rstrip(".")


def shopping(rng: random.Random, chinese: bool) -> Worked:
    count, price = rng.randint(3, 12), rng.randint(12, 95)
    off, postage = rng.choice((5, 10, 15, 20, 25)), rng.randint(3, 18)
    whole = count * price
    reduced = Fraction(whole * (100 - off), 100)
    total = reduced + postage
    if chinese:
        return Worked(
            f"一件商品{price}元，小王买了{count}件，打{decimal(Fraction(100 - off, 10))}折，"
            f"另付运费{postage}元。他一共要付多少钱？",
            f"先算原价：{count} × {price} = {whole} 元。\n"
            f"优惠{off}%，实际付{100 - off}%：{whole} × {100 - off} ÷ 100 = "
            f"{decimal(reduced)} 元。\n"
            f"运费不打折，最后加上：{decimal(reduced)} + {postage} = {decimal(total)} 元。\n"
            f"检查：优惠了 {decimal(whole - reduced)} 元，{whole} - {decimal(whole - reduced)} + "
            f"{postage} = {decimal(total)}，一致。",
            f"他一共要付 **{decimal(total)}** 元。",
        )
    return Worked(
        f"A shop sells mugs for {price} dollars each. Ines buys {count} of them, gets {off}% off, "
        f"and pays {postage} dollars for postage. How much does she pay in all?",
        f"The mugs cost {count} * {price} = {whole} dollars before the discount.\n"
        f"{off}% of {whole} is {decimal(whole - reduced)}, so {decimal(reduced)} dollars "
        "are left.\n"
        f"The discount is on the goods and not on the postage, so postage comes last: "
        f"{decimal(reduced)} + {postage} = {decimal(total)}.\n"
        f"Check another way: {100 - off}% of {whole} is {whole} * {100 - off} / 100 = "
        f"{decimal(reduced)}. The same.",
        f"She pays **{decimal(total)}** dollars: {decimal(reduced)} for the mugs after the "
        f"discount and {postage} for postage.",
    )


def meeting(rng: random.Random, chinese: bool) -> Worked:
    first, second = rng.randrange(40, 100, 4), rng.randrange(50, 130, 4)
    hours = Fraction(rng.randint(3, 14), 2)
    distance = (first + second) * hours
    way = first * hours
    if chinese:
        return Worked(
            f"甲、乙两地相距{decimal(distance)}千米。一辆货车从甲地出发，每小时行{first}千米；同时一辆"
            f"客车从乙地出发，每小时行{second}千米，两车相向而行。几小时后相遇？相遇时货车行了多少千米？",
            f"两车相向而行，每小时一共靠近 {first} + {second} = {first + second} 千米。\n"
            f"相遇时间：{decimal(distance)} ÷ {first + second} = {decimal(hours)} 小时。\n"
            f"货车的路程：{first} × {decimal(hours)} = {decimal(way)} 千米。\n"
            f"检查客车：{second} × {decimal(hours)} = {decimal(second * hours)} 千米，两者相加是 "
            f"{decimal(way)} + {decimal(second * hours)} = {decimal(distance)} 千米，正确。",
            f"**{decimal(hours)}** 小时后相遇，此时货车行了 **{decimal(way)}** 千米。",
        )
    return Worked(
        f"Two towns are {decimal(distance)} km apart. A lorry leaves the first at {first} km/h, "
        f"and at the same moment a coach leaves the second at {second} km/h on the same road. "
        "After how many hours do they meet, and how far from the first town?",
        f"They drive towards each other, so the gap shrinks by {first} + {second} = "
        f"{first + second} km every hour.\n"
        f"Time: {decimal(distance)} / {first + second} = {decimal(hours)} hours.\n"
        f"In this time the lorry covers {first} * {decimal(hours)} = {decimal(way)} km.\n"
        f"The coach covers {second} * {decimal(hours)} = {decimal(second * hours)} km, and "
        f"{decimal(way)} + {decimal(second * hours)} = {decimal(distance)}, as it should be.",
        f"They meet after **{decimal(hours)} hours**, {decimal(way)} km from the first town.",
    )


def equation(rng: random.Random, chinese: bool) -> Worked:
    x, a, c = rng.randint(-12, 25), rng.randint(4, 11), rng.randint(1, 3)
    b = rng.randint(2, 40)
    d = (a - c) * x + b
    few = "x" if c == 1 else f"{c}x"
    left, right = f"{a}x + {b}", f"{few} + {d}".replace("+ -", "- ")
    if chinese:
        return Worked(
            f"解方程：{left} = {right}",
            f"把含 x 的项移到左边，常数移到右边：{a}x - {few} = {d} - {b}。\n"
            f"合并：{a - c}x = {d - b}。\n两边除以 {a - c}：x = {x}。\n"
            f"代入检验：左边 {a} × ({x}) + {b} = {a * x + b}，右边 {c} × ({x}) + ({d}) = "
            f"{c * x + d}，"
            "两边相等。",
            f"x = **{x}**",
        )
    return Worked(
        f"Solve for x: {left} = {right}",
        f"Bring the terms with x to the left and the numbers to the right: "
        f"{a}x - {few} = {d} - {b}.\nThat gives {a - c}x = {d - b}.\nDivide by {a - c}: x = {x}.\n"
        f"Check: on the left {a} * ({x}) + {b} = {a * x + b}, on the right {c} * ({x}) + ({d}) = "
        f"{c * x + d}. Both sides agree.",
        f"**x = {x}**\n\nSubtracting {few} and {b} from both sides leaves {a - c}x = {d - b}, and "
        f"dividing by {a - c} gives the solution.",
    )


def missing_mark(rng: random.Random, chinese: bool) -> Worked:
    marks = [rng.randint(55, 98) for _ in range(rng.randint(3, 5))]
    last = rng.randint(60, 100)
    while (sum(marks) + last) % (len(marks) + 1):
        last += 1
    mean = (sum(marks) + last) // (len(marks) + 1)
    listed, added = ", ".join(map(str, marks)), " + ".join(map(str, marks))
    count = len(marks) + 1
    if chinese:
        return Worked(
            f"小丽前{count - 1}次测验的成绩是{listed.replace(', ', '、')}分。"
            f"第{count}次要考多少分，{count}次的平均分才正好是{mean}分？",
            f"{count}次的总分应当是 {count} × {mean} = {count * mean} 分。\n"
            f"前{count - 1}次的总分：{added} = {sum(marks)} 分。\n"
            f"还差：{count * mean} - {sum(marks)} = {last} 分。",
            f"第{count}次要考 **{last}** 分。",
        )
    return Worked(
        f"Tom's marks so far are {listed}. What does he need in his next test for an average of "
        f"exactly {mean}?",
        f"With the next one there are {count} tests. For an average of {mean} they must add up to "
        f"{count} * {mean} = {count * mean}.\nSo far he has {added} = {sum(marks)}.\n"
        f"What is missing: {count * mean} - {sum(marks)} = {last}.",
        f"He needs **{last}**"
        + (", which is more than 100: he cannot do it." if last > 100 else "."),
    )


def fence(rng: random.Random, chinese: bool) -> Worked:
    length, width, price = rng.randint(12, 60), rng.randint(6, 40), rng.randint(7, 35)
    gate = rng.randint(2, 5)
    around, area = 2 * (length + width), length * width
    cost = (around - gate) * price
    if chinese:
        return Worked(
            f"一块长方形菜地长{length}米，宽{width}米，四周围上篱笆，留一个{gate}米宽的门。篱笆每米"
            f"{price}元，一共要多少钱？菜地的面积是多少？",
            f"周长：2 × ({length} + {width}) = {around} 米。\n减去门宽：{around} - {gate} = "
            f"{around - gate} 米。\n费用：{around - gate} × {price} = {cost} 元。\n"
            f"面积：{length} × {width} = {area} 平方米。",
            f"篱笆一共要 **{cost}** 元，菜地的面积是 **{area}** 平方米。",
        )
    return Worked(
        f"A rectangular garden is {length} m long and {width} m wide. It gets a fence all around "
        f"except for a gate of {gate} m. A metre of fence costs {price} euros. What does the fence "
        "cost, and how large is the garden?",
        f"The way around is 2 * ({length} + {width}) = {around} m.\nWithout the gate: {around} - "
        f"{gate} = {around - gate} m of fence.\nCost: {around - gate} * {price} = {cost} euros.\n"
        f"The area is length times width: {length} * {width} = {area} square metres. The gate does "
        "not matter for it.",
        f"The fence costs **{cost} euros**, and the garden has **{area} square metres**.",
    )


def mixture(rng: random.Random, chinese: bool) -> Worked:
    amounts = rng.randrange(100, 500, 50), rng.randrange(100, 500, 50)
    shares = rng.randrange(5, 30, 5), rng.randrange(30, 75, 5)
    salt = [Fraction(a * s, 100) for a, s in zip(amounts, shares, strict=True)]
    share = sum(salt) / sum(amounts) * 100
    if chinese:
        return Worked(
            f"把{amounts[0]}克浓度为{shares[0]}%的盐水和{amounts[1]}克浓度为{shares[1]}%的盐水混合，"
            "混合后的浓度是多少？（保留两位小数）",
            f"第一杯含盐：{amounts[0]} × {shares[0]}% = {decimal(salt[0])} 克。\n"
            f"第二杯含盐：{amounts[1]} × {shares[1]}% = {decimal(salt[1])} 克。\n"
            f"盐一共 {decimal(sum(salt))} 克，盐水一共 {sum(amounts)} 克。\n"
            f"浓度：{decimal(sum(salt))} ÷ {sum(amounts)} × 100% ≈ {decimal(share)}%。\n"
            f"结果在 {shares[0]}% 和 {shares[1]}% 之间，合理。",
            f"混合后的浓度约为 **{decimal(share)}%**。",
        )
    return Worked(
        f"You mix {amounts[0]} g of a {shares[0]}% salt solution with {amounts[1]} g of a "
        f"{shares[1]}% one. What is the concentration of the mixture?",
        f"Salt in the first: {amounts[0]} * {shares[0]} / 100 = {decimal(salt[0])} g.\n"
        f"Salt in the second: {amounts[1]} * {shares[1]} / 100 = {decimal(salt[1])} g.\n"
        f"Together {decimal(sum(salt))} g of salt in {sum(amounts)} g of solution.\n"
        f"{decimal(sum(salt))} / {sum(amounts)} * 100 = {decimal(share)} (rounded to two places).\n"
        f"It has to lie between {shares[0]} and {shares[1]}, and it does.",
        f"The mixture has about **{decimal(share)}%** salt.",
    )


def common_time(rng: random.Random, chinese: bool) -> Worked:
    a, b = rng.sample((6, 8, 9, 10, 12, 14, 15, 16, 18, 20, 24, 25), 2)
    common, divisor = math.lcm(a, b), math.gcd(a, b)
    hour, minute = divmod(8 * 60 + common, 60)
    if chinese:
        return Worked(
            f"一路公交车每{a}分钟发一班，二路公交车每{b}分钟发一班，早上8:00同时发车。下一次同时发车是"
            "几点几分？",
            f"要求的是 {a} 和 {b} 的最小公倍数。\n最大公约数是 {divisor}，所以最小公倍数是 "
            f"{a} × {b} ÷ {divisor} = {common}。\n8:00 再过 {common} 分钟是 {hour}:{minute:02d}。",
            f"下一次同时发车是 **{hour}:{minute:02d}**。",
        )
    return Worked(
        f"One bus leaves every {a} minutes and another every {b} minutes. Both leave at 8:00. When "
        "do they next leave at the same time?",
        f"I need the least common multiple of {a} and {b}.\nTheir greatest common divisor is "
        f"{divisor}, so the least common multiple is {a} * {b} / {divisor} = {common}.\n"
        f"Check: {common} / {a} = {common // a} and {common} / {b} = {common // b}, both whole.\n"
        f"{common} minutes after 8:00 is {hour}:{minute:02d}.",
        f"At **{hour}:{minute:02d}**, {common} minutes later.",
    )


def series(rng: random.Random, chinese: bool) -> Worked:
    first, step, count = rng.randint(8, 40), rng.randint(2, 6), rng.randint(12, 35)
    last = first + (count - 1) * step
    total = Fraction((first + last) * count, 2)
    if chinese:
        return Worked(
            f"剧场第一排有{first}个座位，以后每一排比前一排多{step}个，一共{count}排。最后一排有多少个"
            "座位？整个剧场有多少个座位？",
            f"最后一排：{first} + ({count} - 1) × {step} = {last} 个。\n"
            f"这是等差数列，总数 = (首项 + 末项) × 项数 ÷ 2 = ({first} + {last}) × {count} ÷ 2 = "
            f"{decimal(total)} 个。",
            f"最后一排有 **{last}** 个座位，一共有 **{decimal(total)}** 个座位。",
        )
    return Worked(
        f"A theatre has {first} seats in the first row, and every row has {step} more than the one "
        f"in front of it. There are {count} rows. How many seats has the last row, and how many "
        "are there altogether?",
        f"From the first row to the last there are {count - 1} steps: {first} + {count - 1} * "
        f"{step} = {last}.\nThe first and the last row together have {first + last} seats, and so "
        f"have the second and the last but one, and so on. The average row has {first + last} / 2 "
        f"seats, so all {count} have {first + last} * {count} / 2 = {decimal(total)}.",
        f"The last row has **{last}** seats; there are **{decimal(total)}** in all.",
    )


def marbles(rng: random.Random, chinese: bool) -> Worked:
    red, blue = rng.randint(3, 9), rng.randint(3, 9)
    total = red + blue
    both = Fraction(red * (red - 1) + blue * (blue - 1), total * (total - 1))
    first, second = Fraction(red * (red - 1), total * (total - 1)), both
    if chinese:
        return Worked(
            f"袋子里有{red}个红球和{blue}个蓝球，不放回地摸出两个。两个球颜色相同的概率是多少？",
            f"一共 {total} 个球。\n两个都是红球：{red}/{total} × {red - 1}/{total - 1} = "
            f"{first}。\n"
            f"两个都是蓝球：{blue}/{total} × {blue - 1}/{total - 1} = {second - first}。\n"
            f"两种情况不会同时发生，相加：{first} + {second - first} = {both}。",
            f"概率是 **{both}**，约为 {decimal(both * 100)}%。",
        )
    return Worked(
        f"A bag holds {red} red and {blue} blue marbles. Two are drawn without putting the first "
        "one back. How likely is it that they have the same colour?",
        f"There are {total} marbles.\nBoth red: {red}/{total} * {red - 1}/{total - 1} = {first}.\n"
        f"Both blue: {blue}/{total} * {blue - 1}/{total - 1} = {second - first}.\n"
        f"These cannot both happen, so the chances add up: {first} + {second - first} = {both}.\n"
        f"As a percentage: about {decimal(both * 100)}%.",
        f"The chance is **{both}**, or about {decimal(both * 100)}%.",
    )


def pipes(rng: random.Random, chinese: bool) -> Worked:
    a, b = rng.sample(range(2, 13), 2)
    rate = Fraction(1, a) + Fraction(1, b)
    hours = 1 / rate
    if chinese:
        return Worked(
            f"单开甲管{a}小时注满水池，单开乙管{b}小时注满。两管同时打开，几小时注满？",
            f"把水池看作 1。甲管每小时注 1/{a}，乙管每小时注 1/{b}。\n"
            f"两管一起每小时注 1/{a} + 1/{b} = {rate}。\n需要 1 ÷ ({rate}) = {hours} 小时，约 "
            f"{decimal(hours)} 小时。\n结果比 {min(a, b)} 小，合理，因为两管一起总比一管快。",
            f"两管同时打开，**{hours}** 小时（约 {decimal(hours)} 小时）注满。",
        )
    return Worked(
        f"One pipe fills a tank in {a} hours, another one in {b} hours. How long do both take "
        "together?",
        f"In one hour the first fills 1/{a} of the tank and the second 1/{b}.\n"
        f"Together 1/{a} + 1/{b} = {b}/{a * b} + {a}/{a * b} = {rate}.\n"
        f"To fill all of it they need 1 / ({rate}) = {hours} hours, about {decimal(hours)}.\n"
        f"That is less than {min(a, b)} hours, as it has to be: two pipes are faster than one.",
        f"Together they need **{hours} hours**, about {decimal(hours)} hours.",
    )


KINDS: tuple[Callable[[random.Random, bool], Worked], ...] = (
    shopping,
    meeting,
    equation,
    missing_mark,
    fence,
    mixture,
    common_time,
    series,
    marbles,
    pipes,
)


def conversation(rng: random.Random, *, chinese: bool, problems: int = 3) -> list[dict[str, str]]:
    """Messages: problems of different kinds, one after the other."""
    kinds = rng.sample(KINDS, problems)
    return [message for kind in kinds for message in kind(rng, chinese).messages()]
