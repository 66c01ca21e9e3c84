# The labels met so far, and where they are found.
#
# What tells a label is kept in the order in which labels occur, in sixteen bytes: the text itself up to that length,
# two hashes of longer text, which are then compared with the first row that has it.  A slot of the table holds half of
# the hash and where that is, in eight bytes, so that the tables of some hundred thousand labels stay in the cache.
#
# gives  Labels: enlarge, clear, length_of, is_short; Batch: look_up

cdef enum:
    BATCH = 256         # rows of a batch, and of a step of looking it up
    STEP = 64
    SHORT = 16          # bytes of text that a key holds
    HASHED = 255        # last byte of a key that holds hashes: none of UTF-8

# What tells a label: its text, low bytes first, and its length in the last byte, which is below 16; of sixteen bytes
# that end with another one the text alone; two hashes of other text, the last byte HASHED.
cdef struct Key:
    uint64_t low, high

# A slot of the table: half of the hash of a label, and its code and one; 0 where it is empty.
cdef struct Slot:
    uint32_t tag, number

cdef struct Labels:
    Slot* slots
    Py_ssize_t n_slots      # a power of two
    Py_ssize_t n            # labels found
    Key* key                # of each label, by code
    const char** text
    Py_ssize_t* length
    Py_ssize_t room         # labels that these have room for

# The rows of a batch.
cdef struct Batch:
    Py_ssize_t n
    const char* text[BATCH]     # NULL where missing
    Py_ssize_t length[BATCH]
    Key key[BATCH]
    uint64_t hash[BATCH]
    bint again[BATCH]           # whether it is the label of the row before


cdef inline uint64_t mix(uint64_t a, uint64_t b) noexcept nogil:
    """A hash of two words."""
    cdef uint64_t h = (a ^ (b << 29 | b >> 35)) * <uint64_t> 0x9E3779B97F4A7C15
    h = (h ^ (h >> 32) ^ b) * <uint64_t> 0xD6E8FEB86659FD93
    return h ^ (h >> 32)


cdef inline uint64_t word_at(const char* text) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, text, 8)
    return word


cdef inline uint64_t half_word_at(const char* text) noexcept nogil:
    cdef uint32_t word
    memcpy(&word, text, 4)
    return word


cdef inline bint is_short(const Key* key) noexcept nogil:
    """Whether the key is the text."""
    return key.high >> 56 != HASHED


cdef inline void describe(const char* text, Py_ssize_t length, Key* key) noexcept nogil:
    """What tells the label: of short text it is put together from two words at its ends, which may overlap."""
    cdef Py_ssize_t at
    key.high = <uint64_t> length << 56
    if 8 <= length < SHORT:
        key.low = word_at(text)
        key.high |= word_at(text + length - 8) >> 8 * (SHORT - 1 - length) >> 8
    elif 4 <= length < 8:
        key.low = half_word_at(text) | half_word_at(text + length - 4) << 8 * (length - 4)
    elif length < 4:
        key.low = 0
        for at in range(length):
            key.low |= <uint64_t> <uint8_t> text[at] << 8 * at
    elif length == SHORT and <uint8_t> text[SHORT - 1] >= SHORT:
        key.low, key.high = word_at(text), word_at(text + 8)
    else:
        hash_text(text, length, key)


cdef void hash_text(const char* text, Py_ssize_t length, Key* key) noexcept nogil:
    """Two hashes of text that is no key itself."""
    cdef uint64_t word
    cdef Py_ssize_t at = 0
    key.low, key.high = 0, <uint64_t> length
    while at + 8 <= length:
        word = word_at(text + at)
        key.low = mix(key.low, word)
        key.high = mix(word, key.high + <uint64_t> at)
        at += 8
    word = 0
    memcpy(&word, text + at, length - at)
    key.low = mix(key.low, word)
    key.high = mix(word, key.high + <uint64_t> at) | <uint64_t> HASHED << 56


cdef inline bint same(const Key* one, const Key* other) noexcept nogil:
    return one.low == other.low and one.high == other.high


cdef inline bint same_text(const Key* key, Py_ssize_t length, const char* text, Py_ssize_t other, const char* there
                           ) noexcept nogil:
    """Whether texts of the same key are the same."""
    return is_short(key) or (length == other and memcmp(text, there, length) == 0)


cdef int furnish(Labels* all, Py_ssize_t n_slots) except -1:
    """A table with more slots."""
    cdef Py_ssize_t i, at
    cdef uint64_t hash
    cdef Slot* slots = <Slot*> calloc(n_slots, sizeof(Slot))
    if slots == NULL:
        raise MemoryError()
    for i in range(all.n):
        hash = mix(all.key[i].low, all.key[i].high)
        at = <Py_ssize_t> (hash & <uint64_t> (n_slots - 1))
        while slots[at].number > 0:
            at = (at + 1) & (n_slots - 1)
        slots[at] = Slot(<uint32_t> (hash >> 32), <uint32_t> (i + 1))
    free(all.slots)
    all.slots, all.n_slots = slots, n_slots
    return 0


cdef void* widened(void* array, size_t size) except NULL:
    cdef void* out = realloc(array, size)
    if out == NULL:
        raise MemoryError()
    return out


cdef int enlarge(Labels* all, Py_ssize_t n) except -1:
    """Room for n labels in all, and slots of which at most half are taken."""
    if all.n_slots < 2 * n:
        while all.n_slots < 2 * n:
            furnish(all, 4 * all.n_slots if all.n_slots > 0 else 1024)
    if all.room < n:
        all.text = <const char**> widened(all.text, 2 * n * sizeof(char*))
        all.length = <Py_ssize_t*> widened(all.length, 2 * n * sizeof(Py_ssize_t))
        all.key = <Key*> widened(all.key, 2 * n * sizeof(Key))
        all.room = 2 * n
    return 0


cdef void begin(Labels* all) noexcept nogil:
    all.slots, all.key, all.text, all.length = NULL, NULL, NULL, NULL
    all.n_slots, all.n, all.room = 0, 0, 0


cdef void clear(Labels* all) noexcept nogil:
    free(all.slots)
    free(all.key)
    free(<void*> all.text)
    free(all.length)


cdef inline void describe_some(const Labels* all, Batch* batch, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """What tells the labels of some rows, and their slots into the cache."""
    cdef Py_ssize_t i
    cdef Key* key
    for i in range(start, stop):
        batch.again[i] = False
        if batch.text[i] == NULL:
            continue
        key = &batch.key[i]
        describe(batch.text[i], batch.length[i], key)
        batch.again[i] = (i > 0 and batch.text[i - 1] != NULL and same(key, key - 1)
                          and same_text(key, batch.length[i], batch.text[i], batch.length[i - 1], batch.text[i - 1]))
        if not batch.again[i]:
            batch.hash[i] = mix(key.low, key.high)
            FETCH(all.slots + (batch.hash[i] & <uint64_t> (all.n_slots - 1)))


cdef inline void fetch_keys(const Labels* all, const Batch* batch, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """The labels to which the slots of some rows lead into the cache."""
    cdef Py_ssize_t i
    cdef uint32_t number
    for i in range(start, stop):
        if batch.text[i] != NULL and not batch.again[i]:
            number = all.slots[batch.hash[i] & <uint64_t> (all.n_slots - 1)].number
            if number > 0:
                FETCH(all.key + number - 1)


cdef inline void find_some(Labels* all, const Batch* batch, Py_ssize_t start, Py_ssize_t stop, int64_t* codes
                           ) noexcept nogil:
    """Codes of some rows."""
    cdef Py_ssize_t i, at
    cdef uint32_t tag
    cdef Slot* slot
    cdef const Key* key
    for i in range(start, stop):
        codes[i] = -1
        if batch.text[i] == NULL:
            continue
        if batch.again[i]:
            codes[i] = codes[i - 1]
            continue
        key = &batch.key[i]
        at = <Py_ssize_t> (batch.hash[i] & <uint64_t> (all.n_slots - 1))
        tag = <uint32_t> (batch.hash[i] >> 32)
        while True:
            slot = all.slots + at
            if slot.number == 0:
                all.key[all.n], all.text[all.n], all.length[all.n] = key[0], batch.text[i], batch.length[i]
                all.n += 1
                slot[0] = Slot(tag, <uint32_t> all.n)
                break
            if slot.tag == tag and same(all.key + slot.number - 1, key) and same_text(
                    key, batch.length[i], batch.text[i], all.length[slot.number - 1], all.text[slot.number - 1]):
                break
            at = (at + 1) & (all.n_slots - 1)
        codes[i] = <int64_t> slot.number - 1


cdef void look_up(Labels* all, Batch* batch, int64_t* codes) noexcept nogil:
    """Codes of a batch, for whose labels there is room: slots are fetched two steps, keys one step ahead."""
    cdef Py_ssize_t at = 0, n = batch.n
    while at < n + 2 * STEP:
        describe_some(all, batch, at, min(at + STEP, n))
        if at >= STEP:
            fetch_keys(all, batch, at - STEP, min(at, n))
        if at >= 2 * STEP:
            find_some(all, batch, at - 2 * STEP, min(at - STEP, n), codes)
        at += STEP
