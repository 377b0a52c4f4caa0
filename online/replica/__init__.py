"""One model in one replica: journal, learning and exchange; no Ray and no HTTP."""
