"""The fifteen corruptions, by family: noise, blur, weather, digital; :mod:`demilune.data.corruptions` joins them."""
