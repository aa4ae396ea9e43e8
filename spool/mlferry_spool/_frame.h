/* The layout of a frame, as in ``mlferry_spool.frames``: bytes and checksums, no Python. */

#ifndef MLFERRY_FRAME_H
#define MLFERRY_FRAME_H

#include <stdint.h>
#include <string.h>

enum {
    EXT32 = 0xC9,
    HEADER = 10,   /* marker, ext length, kind, sequence */
    OVERHEAD = 18, /* header, and the two checksums */
    BEYOND_LENGTH = 12,
    SMALL = 4096, /* bytes of payload that are built on the stack */
};

static uint32_t crc_table[8][256];

/* Tables for eight bytes at a time ("slicing-by-8", Kounavis and Berry 2005) of the CRC-32 of zlib. */
static void
fill_crc_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc & 1) ? 0xEDB88320u ^ (crc >> 1) : crc >> 1;
        }
        crc_table[0][byte] = crc;
    }
    for (int table = 1; table < 8; table++) {
        for (int byte = 0; byte < 256; byte++) {
            uint32_t before = crc_table[table - 1][byte];
            crc_table[table][byte] = (before >> 8) ^ crc_table[0][before & 0xFF];
        }
    }
}

static uint32_t
little_endian(const unsigned char *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* As ``zlib.crc32(bytes, start)``. */
static uint32_t
crc32_from(uint32_t start, const unsigned char *at, size_t size)
{
    uint32_t crc = ~start;
    for (; size >= 8; size -= 8, at += 8) {
        uint32_t low = crc ^ little_endian(at), high = little_endian(at + 4);
        crc = crc_table[7][low & 0xFF] ^ crc_table[6][low >> 8 & 0xFF] ^ crc_table[5][low >> 16 & 0xFF]
            ^ crc_table[4][low >> 24] ^ crc_table[3][high & 0xFF] ^ crc_table[2][high >> 8 & 0xFF]
            ^ crc_table[1][high >> 16 & 0xFF] ^ crc_table[0][high >> 24];
    }
    while (size--) {
        crc = crc_table[0][(crc ^ *at++) & 0xFF] ^ (crc >> 8);
    }
    return ~crc;
}

static unsigned char *
put32(unsigned char *at, uint32_t value)
{
    at[0] = (unsigned char)(value >> 24);
    at[1] = (unsigned char)(value >> 16);
    at[2] = (unsigned char)(value >> 8);
    at[3] = (unsigned char)value;
    return at + 4;
}

static unsigned char *
put64(unsigned char *at, uint64_t value)
{
    return put32(put32(at, (uint32_t)(value >> 32)), (uint32_t)value);
}

static unsigned char *
put_double(unsigned char *at, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return put64(at, bits);
}

/* Room for one frame, and how much of it the payload takes. */
typedef struct {
    unsigned char bytes[OVERHEAD + SMALL];
    size_t size;
} Frame;

static unsigned char *
payload_of(Frame *frame)
{
    return frame->bytes + OVERHEAD;
}

static void
seal(Frame *frame, int kind, uint32_t sequence, uint32_t salt)
{
    unsigned char *at = frame->bytes;
    *at++ = EXT32;
    at = put32(at, (uint32_t)frame->size + BEYOND_LENGTH);
    *at++ = (unsigned char)kind;
    at = put32(at, sequence);
    uint32_t check = crc32_from(salt, frame->bytes, HEADER);
    at = put32(at, check);
    put32(at, crc32_from(check, payload_of(frame), frame->size));
}

#endif
