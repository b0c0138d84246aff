#ifndef CLINUX_RING_H
#define CLINUX_RING_H
#include <stddef.h>
#include <stdint.h>
#endif
