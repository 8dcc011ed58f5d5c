select
    make_date(year, month, day) as flight_date,
    make_date(year, month, 1) as flight_month,
    make_timestamp(year, month, day, hour, minute, 0) as scheduled_departure_local,
    hour as scheduled_hour,
    time_hour as scheduled_hour_utc,
    carrier,
    flight as flight_number,
    tailnum as tail_number,
    origin,
    dest,
    origin || '-' || dest as route,
    distance as distance_mi,
    dep_delay as departure_delay_min,
    arr_delay as arrival_delay_min,
    air_time as air_time_min,
    -- The rule of the Bureau of Transportation Statistics: on time is less than 15 minutes late at the gate of arrival.
    case
        when dep_time is null then 'cancelled'
        when arr_delay is null then 'diverted'
        when arr_delay < 15 then 'on_time'
        else 'delayed'
    end as outcome
from {{ source('staging', 'flights') }}
