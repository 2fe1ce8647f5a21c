"""Personal data in texts: mobile numbers, e-mail addresses, resident registration, card and account numbers.

Landlines and service numbers (02-…, 1588-…) are not looked for: in a FAQ they are what people ask for.
"""

from __future__ import annotations

import re
from datetime import date

_MOBILE = re.compile(
    r"(?<![\d-])(01[016-9])[-. )]?(\d{3,4})[-. ]?(\d{4})(?![\d-])|\+82[- ]?10[- ]?\d{3,4}[- ]?\d{4}(?!\d)"
)
_EMAIL = re.compile(r"[A-Za-z0-9][\w.+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")
_RESIDENT = re.compile(
    r"(?<![\d-])(\d{2})(\d{2})(\d{2})\s?-\s?([1-8])\d{6}(?![\d-])|(?<!\d)(\d{2})(\d{2})(\d{2})([1-8])\d{6}(?!\d)"
)
_CARD = re.compile(r"(?<![\d-])\d{4}[- ]?\d{4}[- ]?\d{4}[- ]?\d{4}(?![\d-])")
_ACCOUNT = re.compile(r"(?<![\d-])\d{2,6}-\d{2,6}-\d{2,8}(?:-\d{1,3})?(?![\d-])|(?<![\d-])\d{10,14}(?![\d-])")
_BANK = re.compile("은행|뱅크|계좌|입금|송금|농협|수협|신협|우체국|새마을금고|국민|신한|우리|하나|기업")
_CANDIDATE = re.compile(r"\d{4}|\d[-. )]\d{3}|@")
_LANDLINE = re.compile(r"0(?:2|[3-6]\d|70|80)-|1[5-9]\d\d-")


def find_personal(text: str) -> list[tuple[int, int]]:
    """Start and end of all personal data in a text, in order."""
    if not _CANDIDATE.search(text):
        return []
    spans = [match.span() for match in (*_MOBILE.finditer(text), *_EMAIL.finditer(text))]
    spans += [match.span() for match in _RESIDENT.finditer(text) if _is_birthday(match)]
    spans += [match.span() for match in _CARD.finditer(text) if _luhn(match[0])]
    if _BANK.search(text):
        spans += [match.span() for match in _ACCOUNT.finditer(text) if not _LANDLINE.match(match[0])]
    result: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if not result or start >= result[-1][1]:
            result.append((start, end))
    return result


def mask_personal(text: str) -> str:
    """The text with every letter and digit of personal data as `*`; signs between them stay."""
    for start, end in reversed(find_personal(text)):
        text = text[:start] + re.sub(r"[^\W_]", "*", text[start:end]) + text[end:]
    return text


def _is_birthday(match: re.Match[str]) -> bool:
    """Whether the first six digits of a resident registration number are a date."""
    year, month, day, century = (match[group] or match[group + 4] for group in (1, 2, 3, 4))
    try:
        date((1900 if century in "1256" else 2000) + int(year), int(month), int(day))
    except ValueError:
        return False
    return True


def _luhn(number: str) -> bool:
    """Whether the check digit of a card number is right (Luhn's algorithm)."""
    digits = [int(digit) for digit in number if digit.isdigit()]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
