"""A binary adaptive range coder: what costs little to say when it comes as expected. All integers, so alike on every machine.

The coder is that of LZMA (Martin 1979, "Range encoding"; Pavlov's LZMA specification), with probabilities that learn at the rate
of 1 / (times seen + 1.5), near the Krichevsky-Trofimov estimator. RangeEncoder and RangeDecoder have the same methods: `value`
goes in and comes back; a RangeDecoder takes None and returns what was written, so that one function writes and reads a format.
"""

from data.artifacts import InputError

ONE = 1 << 16  # probabilities are of this
SURE = 48  # no probability is nearer to 0 or 1: a bit costs at least 0.001 bits
SLOWEST = 120  # times seen after which a probability learns no slower
WORD, BYTE = 48, 8  # bits of the coder's state, and of what leaves it at one time
LEARNED = 2  # leading bits of a number, after its first 1, that have learned probabilities; the others have one half
ESCAPE = -1  # what stands for a number that `number` can't write
TAIL = WORD // BYTE  # bytes that a RangeDecoder may read past the end


class Coder:
    """What both directions share: the probabilities, by name of context."""

    def __init__(self):
        self.learned = {}
        self.range = (1 << WORD) - 1

    def bit(self, context, value=None, first=0.5, weight=1):
        """One bit. `first`: its probability of being 1 where the context is new, worth `weight` times seen."""
        state = self.learned.get(context)
        if state is None:
            state = self.learned[context] = [round(ONE * first), weight]
        one, seen = min(max(state[0], SURE), ONE - SURE), state[1]
        value = self.code((self.range >> 16) * one, value)
        state[0] += ((ONE if value else 0) - state[0]) * 2 // (2 * seen + 3)
        state[1] = min(seen + 1, SLOWEST)
        return value

    def uniform(self, count, value=None):
        """A number of `count` bits, all equally likely."""
        found = 0
        for i in reversed(range(count)):
            found = 2 * found + self.code(self.range >> 1, None if value is None else value >> i & 1)
        return found

    def number(self, context, most, value=None, first=0.5):
        """A number from 0 to 2 ** most - 2, in Elias' gamma code with learned probabilities; ESCAPE stands for any other.

        `first`: the probability of 0 where the context is new.
        """
        known = value is not None
        size = None if not known else most if value == ESCAPE else (value + 1).bit_length() - 1
        length = 0
        while length < most:
            stop = self.bit((context, length), None if not known else size == length, first if not length else 0.4, 4)
            if stop:
                break
            length += 1
        if length == most:
            return ESCAPE
        found = 1
        for i in reversed(range(length)):
            bit = None if not known else (value + 1) >> i & 1
            place = length - i  # 1 for the first bit after the leading 1
            found = 2 * found + (self.bit((context, length, found), bit) if place <= LEARNED else self.code(self.range >> 1, bit))
        return found - 1


class RangeEncoder(Coder):
    """Writes bits; `finish` gives the bytes."""

    def __init__(self):
        super().__init__()
        self.low, self.bytes = 0, bytearray()

    def code(self, bound, value):
        """1 has the lower `bound` of the range."""
        if value:
            self.range = bound
        else:
            self.low += bound
            self.range -= bound
        while self.range < 1 << (WORD - BYTE):
            self.shift()
        return int(bool(value))

    def shift(self):
        if self.low >> WORD:  # a carry into what has left already
            i = len(self.bytes) - 1
            while self.bytes[i] == 255:
                self.bytes[i] = 0
                i -= 1
            self.bytes[i] += 1
            self.low &= (1 << WORD) - 1
        self.bytes.append(self.low >> (WORD - BYTE))
        self.low = (self.low << BYTE) & ((1 << WORD) - 1)
        self.range <<= BYTE

    def finish(self):
        """The bytes: as few as tell where in the range the message lies; zeros follow."""
        for keep in range(WORD + 1):  # the number in [low, low + range) with the most zeros at its end
            step = 1 << (WORD - keep)
            value = -(-self.low // step) * step
            if value < self.low + self.range:
                break
        self.low = value
        for _ in range(-(-keep // BYTE)):
            self.shift()
        if not keep and self.low >> WORD:
            self.shift()
        return bytes(self.bytes)


class RangeDecoder(Coder):
    """Reads what an RangeEncoder wrote. Raises InputError where more is asked than was written."""

    def __init__(self, data):
        super().__init__()
        self.data, self.at, self.value = data, 0, 0
        for _ in range(TAIL):
            self.value = self.value << BYTE | self.byte()

    def byte(self):
        self.at += 1
        if self.at > len(self.data) + TAIL:
            raise InputError("the container: expected ranks for every token that it announces, found too few; make it anew")
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def code(self, bound, _):
        bit = self.value < bound
        if bit:
            self.range = bound
        else:
            self.value -= bound
            self.range -= bound
        while self.range < 1 << (WORD - BYTE):
            self.value = (self.value << BYTE | self.byte()) & ((1 << WORD) - 1)
            self.range <<= BYTE
        return int(bit)
